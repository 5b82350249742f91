// SPDX-License-Identifier: GPL-2.0-only
/* Finds the functions of found.h. */
#define pr_fmt(fmt) "fentry: " fmt

#include <linux/kprobes.h>
#include <linux/printk.h>
#include <asm/ibt.h>

#include "found.h"

#define DEFINE_FOUND(name, result, ...) \
	result no_##name(__VA_ARGS__) { BUG(); } \
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

int fentry_find(void)
{
	FOUND(FIND)
	return 0;
}
