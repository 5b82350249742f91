// SPDX-License-Identifier: GPL-2.0-only
/*
 * The module: its files in debugfs, each of which calls into the Rust library.
 *
 *   control     written: one command
 *                 select MOST    a selection of at most MOST functions begins
 *                 attach         counts calls of all selected functions, from now on
 *                 measure        measures how long they take: functions that return soon, and
 *                                have all their arguments in registers
 *                 detach         ends either
 *                 bench CALLS    calls gcd() so often, and keeps how long that took
 *   functions   written: lines of /sys/kernel/tracing/available_filter_functions_addrs,
 *               whose functions are added to the selection
 *   counters    read: calls and name of every selected function that was called
 *   latencies   read: for every selected function that was measured, its name, and how many
 *               calls took how many cycles: 2^12:34 says that 34 took 4096 to 8191
 *   status      read: one line of key=value
 */
#define pr_fmt(fmt) "fentry: " fmt

#include <linux/debugfs.h>
#include <linux/gcd.h>
#include <linux/ktime.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/objtool.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <asm/irq_stack.h>

#include "fentry.h"

static DEFINE_MUTEX(lock);
static struct fentry_tracer *tracer;
static struct dentry *folder;

/* How long the last of each took, in nanoseconds; of one of the first two, ftrace_ns is ftrace's. */
static u64 attach_ns, detach_ns, bench_ns;

/*
 * The engine makes itself and its images on the stack, for which a kernel stack of 16 KiB is
 * too small. So it is called on a larger one, by one task at a time.
 */
static u8 *stack;
/* Rust probes the largest frame in a loop, which objtool does not follow. */
STACK_FRAME_NON_STANDARD(fentry_start);
#define STACK_SIZE (16 * PAGE_SIZE)

/* What is called there; not on the stack that is left meanwhile. */
static struct {
	int (*function)(struct fentry_tracer *tracer);
	int answer;
} work;

static void do_work(void)
{
	work.answer = work.function(tracer);
}

static int on_stack(int (*function)(struct fentry_tracer *tracer))
{
	work.function = function;
	call_on_stack((u64 *)(stack + STACK_SIZE) - 2, do_work, ASM_CALL_ARG0);
	return work.answer;
}

static int timed(int (*function)(struct fentry_tracer *tracer), u64 *ns)
{
	u64 start = ktime_get_ns();
	int err;

	fentry_ftrace_ns = 0;
	err = on_stack(function);
	*ns = ktime_get_ns() - start;
	return err;
}

/* gcd(0, n) is n: a function of a few instructions, which nobody else calls much. */
static int bench(unsigned long calls)
{
	unsigned long call, sum = 0;
	u64 start = ktime_get_ns();

	/* With the same arguments each time, the compiler would call it once. */
	for (call = 1; call <= calls; call++)
		sum += gcd(0, call);
	bench_ns = ktime_get_ns() - start;
	return sum == calls * (calls + 1) / 2 ? 0 : -EIO;
}

static int command(const char *text)
{
	unsigned long number;

	if (sscanf(text, "select %lu", &number) == 1)
		return fentry_select(tracer, number);
	if (!strcmp(text, "attach"))
		return timed(fentry_attach, &attach_ns);
	if (!strcmp(text, "measure"))
		return timed(fentry_measure, &attach_ns);
	if (!strcmp(text, "detach"))
		return timed(fentry_detach, &detach_ns);
	if (sscanf(text, "bench %lu", &number) == 1)
		return bench(number);
	pr_notice("no command: %s\n", text);
	return -EINVAL;
}

static ssize_t control_write(struct file *file, const char __user *from, size_t len, loff_t *at)
{
	char *text = memdup_user_nul(from, min(len, (size_t)PAGE_SIZE));
	int err;

	if (IS_ERR(text))
		return PTR_ERR(text);
	mutex_lock(&lock);
	err = command(strim(text));
	mutex_unlock(&lock);
	kfree(text);
	return err ? err : len;
}

static const struct file_operations control_fops = {
	.owner = THIS_MODULE,
	.write = control_write,
	.llseek = noop_llseek,
};

/* As much of a line as has come: all that is wanted of it is the address that it begins with. */
struct line {
	size_t len;
	char text[24];
};

/* Adds the function of the line to the selection. */
static int end_line(struct line *line)
{
	u64 site;

	line->text[line->len] = 0;
	line->len = 0;
	return sscanf(line->text, "%llx", &site) == 1 ? fentry_add(tracer, site) : 0;
}

static int functions_open(struct inode *inode, struct file *file)
{
	file->private_data = kzalloc_obj(struct line);
	return file->private_data ? 0 : -ENOMEM;
}

static ssize_t functions_write(struct file *file, const char __user *from, size_t len, loff_t *at)
{
	struct line *line = file->private_data;
	size_t each, size = min(len, (size_t)PAGE_SIZE);
	char *text = memdup_user(from, size);
	int err = 0;

	if (IS_ERR(text))
		return PTR_ERR(text);
	mutex_lock(&lock);
	for (each = 0; each < size && err >= 0; each++) {
		if (text[each] == '\n')
			err = end_line(line);
		else if (line->len < sizeof(line->text) - 1)
			line->text[line->len++] = text[each];
	}
	mutex_unlock(&lock);
	kfree(text);
	return err < 0 ? err : size;
}

static int functions_release(struct inode *inode, struct file *file)
{
	kfree(file->private_data);
	return 0;
}

static const struct file_operations functions_fops = {
	.owner = THIS_MODULE,
	.open = functions_open,
	.write = functions_write,
	.release = functions_release,
	.llseek = noop_llseek,
};

static int counters_show(struct seq_file *file, void *unused)
{
	size_t position, count;

	mutex_lock(&lock);
	count = fentry_selected(tracer);
	for (position = 0; position < count; position++) {
		u64 entry, calls = fentry_calls(tracer, position, &entry);

		if (calls)
			seq_printf(file, "%llu %ps\n", calls, (void *)entry);
	}
	mutex_unlock(&lock);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(counters);

static int latencies_show(struct seq_file *file, void *unused)
{
	u64 buckets[FENTRY_BUCKETS], entry;
	size_t position, count;

	mutex_lock(&lock);
	count = fentry_selected(tracer);
	for (position = 0; position < count; position++) {
		bool named = false;
		int bucket;

		entry = fentry_histogram(tracer, position, buckets);
		for (bucket = 0; entry && bucket < FENTRY_BUCKETS; bucket++) {
			if (!buckets[bucket])
				continue;
			if (!named)
				seq_printf(file, "%ps", (void *)entry);
			named = true;
			seq_printf(file, " 2^%d:%llu", bucket, buckets[bucket]);
		}
		if (named)
			seq_putc(file, '\n');
	}
	mutex_unlock(&lock);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(latencies);

static int status_show(struct seq_file *file, void *unused)
{
	size_t position, count, called = 0;
	u64 entry, calls = 0;

	mutex_lock(&lock);
	count = fentry_selected(tracer);
	for (position = 0; position < count; position++) {
		u64 of_it = fentry_calls(tracer, position, &entry);

		calls += of_it;
		called += !!of_it;
	}
	seq_printf(file, "functions=%zu called=%zu calls=%llu attach_ns=%llu detach_ns=%llu "
		   "ftrace_ns=%llu bench_ns=%llu bytes=%zu\n", count, called, calls, attach_ns,
		   detach_ns, fentry_ftrace_ns, bench_ns, fentry_bytes(tracer));
	mutex_unlock(&lock);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(status);

static int __init fentry_module_init(void)
{
	int err = fentry_kernel_init();

	if (err)
		return err;
	tracer = kvzalloc(fentry_size(), GFP_KERNEL);
	stack = kvzalloc(STACK_SIZE, GFP_KERNEL);
	err = tracer && stack ? on_stack(fentry_start) : -ENOMEM;
	if (err) {
		kvfree(stack);
		kvfree(tracer);
		return err;
	}
	folder = debugfs_create_dir("fentry", NULL);
	debugfs_create_file("control", 0200, folder, NULL, &control_fops);
	debugfs_create_file("functions", 0200, folder, NULL, &functions_fops);
	debugfs_create_file("counters", 0400, folder, NULL, &counters_fops);
	debugfs_create_file("latencies", 0400, folder, NULL, &latencies_fops);
	debugfs_create_file("status", 0400, folder, NULL, &status_fops);
	return 0;
}
module_init(fentry_module_init);

static void __exit fentry_module_exit(void)
{
	debugfs_remove(folder);
	on_stack(fentry_end);
	kvfree(stack);
	kvfree(tracer);
}
module_exit(fentry_module_exit);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Function-entry trampolines: counts calls of any number of kernel functions");
