/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Functions of the kernel that are not exported, and are found: executable memory, pages for an
 * area of address space (BPF's arena asks for them in the same way), and ftrace's way of
 * leading each site elsewhere.
 *
 * Kprobes know the addresses. They are called by static calls, which the kernel patches to be
 * direct: an indirect call would need a landing pad at a function whose address nobody takes,
 * and the boot of a kernel with IBT has removed that.
 */
#ifndef FOUND_H
#define FOUND_H

#include <linux/execmem.h>
#include <linux/ftrace.h>
#include <linux/static_call.h>
#include <linux/vmalloc.h>

/* Name, type of the result, arguments. */
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
	F(update_ftrace_direct_del, int, struct ftrace_ops *ops, struct ftrace_hash *hash) \
	F(update_ftrace_direct_mod, int, struct ftrace_ops *ops, struct ftrace_hash *hash, \
	  bool do_direct_lock) \
	F(ftrace_find_rec_direct, unsigned long, unsigned long site)

/* What a call leads to until its function is found, which is before there is one. */
#define DECLARE_FOUND(name, result, ...) \
	result no_##name(__VA_ARGS__); \
	DECLARE_STATIC_CALL(name##_call, no_##name);
FOUND(DECLARE_FOUND)

/* Calls one of them. */
#define found(name) static_call(name##_call)

/* Finds them all. */
int fentry_find(void);

#endif
