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
 *   functions   written: whole lines of /sys/kernel/tracing/available_filter_functions_addrs,
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

/* How long the last of each took, in nanoseconds. */
static u64 attach_ns, detach_ns, bench_ns;

static u64 timed(int (*work)(struct fentry_tracer *), u64 *ns)
{
	u64 start = ktime_get_ns();
	int err = work(tracer);

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

/* Adds the functions of whole lines, and returns how many bytes those are. */
static ssize_t add_lines(char *text, size_t len)
{
	char *line, *next = text;
	ssize_t done = 0;

	while ((line = next) && (next = strchr(line, '\n'))) {
		u64 site;

		*next++ = 0;
		done = next - text;
		if (sscanf(line, "%llx", &site) == 1) {
			int err = fentry_add(tracer, site);

			if (err < 0)
				return err;
		}
	}
	return done ? done : -EINVAL;
}

static ssize_t functions_write(struct file *file, const char __user *from, size_t len, loff_t *at)
{
	char *text = memdup_user_nul(from, min(len, (size_t)PAGE_SIZE));
	ssize_t done;

	if (IS_ERR(text))
		return PTR_ERR(text);
	mutex_lock(&lock);
	done = add_lines(text, min(len, (size_t)PAGE_SIZE));
	mutex_unlock(&lock);
	kfree(text);
	return done;
}

static const struct file_operations functions_fops = {
	.owner = THIS_MODULE,
	.write = functions_write,
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
		   "bench_ns=%llu bytes=%zu\n", count, called, calls, attach_ns, detach_ns,
		   bench_ns, fentry_bytes(tracer));
	mutex_unlock(&lock);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(status);

/*
 * The engine is made by value, and is larger than what a kernel stack has room for. Rust probes
 * so large a frame, which objtool does not follow.
 */
STACK_FRAME_NON_STANDARD(fentry_start);

static int __init start_on_big_stack(void)
{
	const size_t size = 16 * PAGE_SIZE;
	u8 *stack = kvzalloc(size, GFP_KERNEL);
	u64 *top = (u64 *)(stack + size) - 1;
	/* Not on the stack that is left. */
	static struct fentry_start_call call __initdata;

	if (!stack)
		return -ENOMEM;
	call.place = tracer;
	call_on_stack(top, fentry_start, ASM_CALL_ARG1, , [arg1] "r" (&call));
	kvfree(stack);
	return call.answer;
}

static int __init fentry_module_init(void)
{
	int err = fentry_kernel_init();

	if (err)
		return err;
	tracer = kvzalloc(fentry_size(), GFP_KERNEL);
	if (!tracer)
		return -ENOMEM;
	err = start_on_big_stack();
	if (err) {
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
	fentry_end(tracer);
	kvfree(tracer);
}
module_exit(fentry_module_exit);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Function-entry trampolines: counts calls of any number of kernel functions");
