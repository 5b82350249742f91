// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the kernel does for the embedder: text, cores, memory for images and tables, ftrace.
 *
 * What is not exported is found: executable memory, pages for an area of address space (BPF's
 * arena asks for them in the same way), and ftrace's way of leading each site elsewhere.
 * Kprobes know the addresses. They are called by static calls, which the kernel patches to be
 * direct: an indirect call would need a landing pad at a function whose address nobody takes,
 * and the boot of a kernel with IBT has removed that.
 */
#define pr_fmt(fmt) "fentry: " fmt

#include <linux/bsearch.h>
#include <linux/delay.h>
#include <linux/execmem.h>
#include <linux/ftrace.h>
#include <linux/kprobes.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/moduleparam.h>
#include <linux/rcupdate.h>
#include <linux/slab.h>
#include <linux/smp.h>
#include <linux/sort.h>
#include <linux/static_call.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>
#include <asm/ibt.h>
#include <asm/nospec-branch.h>
#include <asm/sync_core.h>
#include <asm/text-patching.h>

#include "fentry.h"

/* Functions that are found: name, type of the result, arguments. */
#define FOUND(F) \
	F(execmem_alloc, void *, enum execmem_type type, size_t size) \
	F(execmem_free, void, void *memory) \
	F(get_vm_area, struct vm_struct *, unsigned long size, unsigned long flags) \
	F(vm_area_map_pages, int, struct vm_struct *area, unsigned long start, \
	  unsigned long end, struct page **pages) \
	F(alloc_ftrace_hash, struct ftrace_hash *, int size_bits) \
	F(add_ftrace_hash_entry_direct, struct ftrace_func_entry *, struct ftrace_hash *hash, \
	  unsigned long site, unsigned long target) \
	F(free_ftrace_hash, void, struct ftrace_hash *hash) \
	F(update_ftrace_direct_add, int, struct ftrace_ops *ops, struct ftrace_hash *hash) \
	F(update_ftrace_direct_del, int, struct ftrace_ops *ops, struct ftrace_hash *hash)

/* What a call leads to until its function is found, which is before there is one. */
#define DEFINE_FOUND(name, result, ...) \
	static result no_##name(__VA_ARGS__) { BUG(); } \
	DEFINE_STATIC_CALL(name##_call, no_##name);
FOUND(DEFINE_FOUND)

/* The address of a function that is not exported. */
static void *find(const char *name)
{
	/* Never armed: all that is wanted of it is where it would be. */
	struct kprobe probe = { .symbol_name = name, .flags = KPROBE_FLAG_DISABLED };
	u8 *address;

	if (register_kprobe(&probe)) {
		pr_err("this kernel has no function %s that a kprobe can find\n", name);
		return NULL;
	}
	address = (u8 *)probe.addr;
	unregister_kprobe(&probe);
	/* A probe at the entry stands behind the landing pad. */
	if (__is_endbr(*(u32 *)(address - ENDBR_INSN_SIZE)))
		address -= ENDBR_INSN_SIZE;
	return address;
}

#define FIND(name, result, ...) { \
		void *found = find(#name); \
		if (!found) \
			return -ENOENT; \
		static_call_update(name##_call, (typeof(&no_##name))found); \
	}

/* What the kernel makes of a return: where a CPU's mitigation wants it, a jump to a thunk. */
void a_return(void);
asm(".pushsection .text, \"ax\", @progbits\n"
    ".type a_return, @function\n"
    "a_return: " ASM_ENDBR ASM_RET
    ".size a_return, . - a_return\n"
    ".popsection\n");

static bool plain_returns;
module_param(plain_returns, bool, 0444);
MODULE_PARM_DESC(plain_returns, "load even where the kernel returns by thunks, and emitted code does not");

int fentry_kernel_init(void)
{
	if (((u8 *)a_return)[ENDBR_INSN_SIZE] == JMP32_INSN_OPCODE && !plain_returns) {
		pr_err("on this CPU the kernel returns by thunks, and emitted code does not: load with plain_returns=1 if this is acceptable\n");
		return -EOPNOTSUPP;
	}
	FOUND(FIND)
	return 0;
}

int fentry_kernel_read(u64 address, u8 *to, size_t len)
{
	return copy_from_kernel_nofault(to, (void *)address, len);
}

/*
 * A second mapping of up to 2 MiB of text, writable and not executable. Whoever writes holds
 * the module's lock.
 */
static struct {
	u64 start, end;
	u8 *alias;
	struct page *pages[PTRS_PER_PTE + 1];
} window;

static struct page *text_page(u64 address)
{
	/* Modules' text and images are vmalloc memory, the kernel's own is not. */
	if (address >= MODULES_VADDR)
		return vmalloc_to_page((void *)address);
	return pfn_to_page(__pa_symbol(address) >> PAGE_SHIFT);
}

void fentry_kernel_write_end(void)
{
	if (window.alias)
		vunmap(window.alias);
	window.alias = NULL;
	window.start = window.end = 0;
}

static int open_window(u64 address, size_t len)
{
	u64 at = address & PAGE_MASK, end = PAGE_ALIGN(address + len);
	unsigned int count = 0;

	fentry_kernel_write_end();
	if (end - at > PMD_SIZE)
		return -EINVAL;
	/* In the kernel's own text the rest of the 2 MiB will be wanted next. */
	if (address < MODULES_VADDR)
		end = max(end, ALIGN(at + 1, PMD_SIZE));
	window.start = at;
	for (; at < end; at += PAGE_SIZE) {
		window.pages[count] = text_page(at);
		if (!window.pages[count++])
			return -EFAULT;
	}
	window.alias = vmap(window.pages, count, VM_MAP, PAGE_KERNEL);
	if (!window.alias)
		return -ENOMEM;
	window.end = end;
	return 0;
}

int fentry_kernel_write(u64 address, const u8 *from, size_t len)
{
	if (address < window.start || address + len > window.end) {
		int err = open_window(address, len);

		if (err)
			return err;
	}
	memcpy(window.alias + (address - window.start), from, len);
	return 0;
}

static void sync_this_core(void *unused)
{
	sync_core();
}

void fentry_kernel_sync_cores(void)
{
	on_each_cpu(sync_this_core, NULL, 1);
}

u64 fentry_kernel_images(size_t bytes)
{
	u8 *memory;

	bytes = PAGE_ALIGN(bytes);
	memory = static_call(execmem_alloc_call)(EXECMEM_FTRACE, bytes);
	/* Where it is executable from the start, it is full of int3. */
	if (memory && memchr_inv(memory, INT3_INSN_OPCODE, bytes)) {
		pr_err("the kernel's executable memory is not ready to be executed\n");
		static_call(execmem_free_call)(memory);
		return 0;
	}
	return (u64)memory;
}

void fentry_kernel_images_free(u64 address)
{
	static_call(execmem_free_call)((void *)address);
}

/* An area of address space, and how much of it has pages, from its start. */
struct table {
	struct list_head list;
	struct vm_struct *area;
	size_t committed;
};

static LIST_HEAD(tables);

static struct table *table_at(u8 *base)
{
	struct table *table;

	list_for_each_entry(table, &tables, list) {
		if (table->area->addr == base)
			return table;
	}
	return NULL;
}

u8 *fentry_kernel_reserve(size_t bytes)
{
	struct table *table = kzalloc_obj(*table);

	if (!table)
		return NULL;
	table->area = static_call(get_vm_area_call)(PAGE_ALIGN(bytes), VM_SPARSE);
	if (!table->area) {
		kfree(table);
		return NULL;
	}
	list_add(&table->list, &tables);
	return table->area->addr;
}

int fentry_kernel_commit(u8 *base, size_t from, size_t to)
{
	struct table *table = table_at(base);

	if (!table)
		return -EINVAL;
	/* What an earlier call put there before it failed is there still. */
	for (; table->committed < to; table->committed += PAGE_SIZE) {
		u64 at = (u64)base + table->committed;
		struct page *page = alloc_page(GFP_KERNEL | __GFP_ZERO);
		int err;

		if (!page)
			return -ENOMEM;
		err = static_call(vm_area_map_pages_call)(table->area, at, at + PAGE_SIZE, &page);
		if (err) {
			__free_page(page);
			return err;
		}
	}
	return 0;
}

void fentry_kernel_release(u8 *base)
{
	struct table *table = table_at(base);
	struct page *page, *next;
	LIST_HEAD(pages);
	size_t at;

	if (!table)
		return;
	for (at = 0; at < table->committed; at += PAGE_SIZE)
		list_add(&vmalloc_to_page(base + at)->lru, &pages);
	list_del(&table->list);
	free_vm_area(table->area);
	list_for_each_entry_safe(page, next, &pages, lru)
		__free_page(page);
	kfree(table);
}

/*
 * Functions that are led to one image: a registration of ftrace's, which is made, led elsewhere
 * and ended as a whole. Whoever changes the list holds the module's lock.
 */
struct led {
	struct list_head list;
	struct ftrace_ops ops;
	u64 target;
	size_t count;
	u64 sites[] __counted_by(count);
};

static LIST_HEAD(all_led);

static struct led *led_as(const u64 *sites, size_t count, u64 target)
{
	struct led *led;

	list_for_each_entry(led, &all_led, list) {
		if (led->target == target && led->count == count &&
		    !memcmp(led->sites, sites, count * sizeof(*sites)))
			return led;
	}
	return NULL;
}

static int lead(const u64 *sites, size_t count, u64 target)
{
	struct led *led = kvzalloc_flex(*led, sites, count);
	int err;

	if (!led)
		return -ENOMEM;
	led->count = count;
	led->target = target;
	memcpy(led->sites, sites, count * sizeof(*sites));
	err = ftrace_set_filter_ips(&led->ops, (unsigned long *)led->sites, count, 0, 1);
	if (!err)
		err = register_ftrace_direct(&led->ops, target);
	if (err) {
		ftrace_free_filter(&led->ops);
		kvfree(led);
		return err;
	}
	list_add(&led->list, &all_led);
	return 0;
}

int fentry_kernel_land(const u64 *sites, size_t count, u64 from, u64 to)
{
	struct led *led;
	int err;

	if (!from)
		return lead(sites, count, to);
	led = led_as(sites, count, from);
	if (!led)
		return -EBUSY;
	err = to ? modify_ftrace_direct(&led->ops, to) :
		   unregister_ftrace_direct(&led->ops, from, true);
	if (err)
		return err;
	led->target = to;
	if (!to) {
		list_del(&led->list);
		kvfree(led);
	}
	return 0;
}

static int by_address(const void *a, const void *b)
{
	return cmp_int(*(const u64 *)a, *(const u64 *)b);
}

u64 fentry_kernel_led(u64 site)
{
	struct led *led;

	list_for_each_entry(led, &all_led, list) {
		if (bsearch(&site, led->sites, led->count, sizeof(site), by_address))
			return led->target;
	}
	return 0;
}

/* Functions that are led to a trampoline each. */
static struct ftrace_ops each;

int fentry_kernel_lead_each(const u64 *ways, size_t count, int on)
{
	struct ftrace_hash *hash = static_call(alloc_ftrace_hash_call)(10);
	int err = hash ? 0 : -ENOMEM;

	for (; !err && count--; ways += 2) {
		if (!static_call(add_ftrace_hash_entry_direct_call)(hash, ways[0], ways[1]))
			err = -ENOMEM;
	}
	if (!err)
		err = on ? static_call(update_ftrace_direct_add_call)(&each, hash) :
			   static_call(update_ftrace_direct_del_call)(&each, hash);
	if (hash)
		static_call(free_ftrace_hash_call)(hash);
	return err;
}

void fentry_kernel_quiesce(void)
{
	synchronize_rcu_tasks_rude();
	synchronize_rcu_tasks();
}

void fentry_kernel_sleep(void)
{
	msleep(10);
}

u8 *fentry_kernel_alloc(size_t bytes)
{
	/* Of nothing, too, there is an address. */
	return kvzalloc(max(bytes, (size_t)1), GFP_KERNEL);
}

void fentry_kernel_free(u8 *memory)
{
	kvfree(memory);
}

void fentry_kernel_log(const u8 *text, size_t len)
{
	pr_notice("%.*s\n", (int)len, text);
}

void __noreturn fentry_kernel_panic(void)
{
	panic("fentry: a panic in Rust");
}
