// SPDX-License-Identifier: GPL-2.0-only
/* What the kernel does for the embedder: text, cores, memory for images and for tables. */
#define pr_fmt(fmt) "fentry: " fmt

#include <linux/delay.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/moduleparam.h>
#include <linux/rcupdate.h>
#include <linux/slab.h>
#include <linux/smp.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>
#include <asm/ibt.h>
#include <asm/nospec-branch.h>
#include <asm/sync_core.h>
#include <asm/text-patching.h>

#include "fentry.h"
#include "found.h"

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
	return fentry_find();
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
	memory = found(execmem_alloc)(EXECMEM_FTRACE, bytes);
	/* Where it is executable from the start, it is full of int3. */
	if (memory && memchr_inv(memory, INT3_INSN_OPCODE, bytes)) {
		pr_err("the kernel's executable memory is not ready to be executed\n");
		found(execmem_free)(memory);
		return 0;
	}
	return (u64)memory;
}

void fentry_kernel_images_free(u64 address)
{
	found(execmem_free)((void *)address);
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
	table->area = found(get_vm_area)(PAGE_ALIGN(bytes), VM_SPARSE);
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
		err = found(vm_area_map_pages)(table->area, at, at + PAGE_SIZE, &page);
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

void fentry_kernel_quiesce(void)
{
	synchronize_rcu_tasks_rude();
	synchronize_rcu_tasks();
}

void fentry_kernel_sleep(void)
{
	msleep(10);
}
