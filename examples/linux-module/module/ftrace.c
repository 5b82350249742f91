// SPDX-License-Identifier: GPL-2.0-only
/* Patch sites, which are ftrace's: functions are led to images by its direct calls. */
#define pr_fmt(fmt) "fentry: " fmt

#include <linux/bsearch.h>
#include <linux/ftrace.h>
#include <linux/list.h>
#include <linux/slab.h>
#include <linux/sort.h>

#include "fentry.h"
#include "found.h"

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
	struct ftrace_hash *hash = found(alloc_ftrace_hash)(10);
	int err = hash ? 0 : -ENOMEM;

	for (; !err && count--; ways += 2) {
		if (!found(add_ftrace_hash_entry_direct)(hash, ways[0], ways[1]))
			err = -ENOMEM;
	}
	if (!err)
		err = on ? found(update_ftrace_direct_add)(&each, hash) :
			   found(update_ftrace_direct_del)(&each, hash);
	if (hash)
		found(free_ftrace_hash)(hash);
	return err;
}
