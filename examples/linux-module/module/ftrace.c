// SPDX-License-Identifier: GPL-2.0-only
/* Patch sites, which are ftrace's: functions are led to emitted code by its direct calls. */
#include <linux/ftrace.h>
#include <linux/ktime.h>
#include <linux/log2.h>

#include "fentry.h"
#include "found.h"

/*
 * One registration of ftrace's has all sites, each with an address of its own. Whoever changes
 * it holds the module's lock. Since it is a module's, ftrace ends it with grace periods.
 */
static struct ftrace_ops direct;

u64 fentry_ftrace_ns;

static int change_all(struct ftrace_hash *hash, int change)
{
	switch (change) {
	case FENTRY_LEAD:
		return found(update_ftrace_direct_add)(&direct, hash);
	case FENTRY_RELEASE:
		return found(update_ftrace_direct_del)(&direct, hash);
	case FENTRY_REDIRECT:
		return found(update_ftrace_direct_mod)(&direct, hash, true);
	}
	return -EINVAL;
}

int fentry_kernel_lead(const struct fentry_way *ways, size_t count, int change)
{
	u64 start = ktime_get_ns();
	/* Buckets for it, up to as many as ftrace itself has (FTRACE_HASH_MAX_BITS). */
	struct ftrace_hash *hash = found(alloc_ftrace_hash)(min(ilog2(count | 1) + 1, 12));
	int err = hash ? 0 : -ENOMEM;

	for (; !err && count--; ways++) {
		if (ftrace_is_jmp(ways->target) != (ways->target & FENTRY_JUMP))
			err = -EOPNOTSUPP;
		else if (!found(add_ftrace_hash_entry_direct)(hash, ways->site, ways->target))
			err = -ENOMEM;
	}
	if (!err)
		err = change_all(hash, change);
	if (hash)
		found(free_ftrace_hash)(hash);
	fentry_ftrace_ns += ktime_get_ns() - start;
	return err;
}

u64 fentry_kernel_led(u64 site)
{
	return found(ftrace_find_rec_direct)(site);
}
