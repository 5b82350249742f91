// SPDX-License-Identifier: GPL-2.0-only
/* Which functions every way of attaching can attach to. */
#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "guest.h"

/*
 * Functions that BPF must not be attached to. The first are those of kernel/bpf/verifier.c,
 * `btf_id_deny`; the others are called by what BPF's trampolines call around a program, where
 * nothing keeps them from being entered again.
 */
static const char *const left_out[] = {
	"*migrate_enable", "*migrate_disable", "rcu_read_unlock_strict", "preempt_count_*",
	"__rcu_read_*", "bpf_*", "__bpf_*", "*rcu*", "irq_work_*", "*tramp*",
};

static int is_left_out(const char *name)
{
	size_t each;

	for (each = 0; each < sizeof(left_out) / sizeof(*left_out); each++) {
		if (!fnmatch(left_out[each], name, 0))
			return 1;
	}
	return 0;
}

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct function *)a)->name, ((const struct function *)b)->name);
}

static int by_site(const void *a, const void *b)
{
	const struct function *left = a, *right = b;

	return left->site < right->site ? -1 : left->site > right->site;
}

/* Functions of the kernel itself that ftrace has a site of, and whose name is theirs alone. */
static struct functions all_functions(const char *glob)
{
	size_t size, kept = 0, each;
	char *text = read_file("/sys/kernel/tracing/available_filter_functions_addrs", &size), *line;
	struct functions functions = { calloc(100000, sizeof(struct function)), 0 };

	for (line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
		struct function *function = &functions.list[functions.count];
		char module[2] = "";

		if (functions.count < 100000 &&
		    sscanf(line, "%lx %63s %1s", &function->site, function->name, module) == 2 &&
		    strlen(function->name) < 63)
			functions.count++;
	}
	qsort(functions.list, functions.count, sizeof(*functions.list), by_name);
	for (each = 0; each < functions.count; each++) {
		struct function *it = &functions.list[each];

		if ((each > 0 && !strcmp(it->name, it[-1].name)) ||
		    (each + 1 < functions.count && !strcmp(it->name, it[1].name)))
			it->btf_id = UINT32_MAX;
	}
	for (each = 0; each < functions.count; each++) {
		struct function *it = &functions.list[each];

		if (it->btf_id != UINT32_MAX && !is_left_out(it->name) &&
		    (!strcmp(it->name, "gcd") || !fnmatch(glob, it->name, 0)))
			functions.list[kept++] = *it;
	}
	functions.count = kept;
	free(text);
	return functions;
}

/* Fills in the entries of functions that are sorted by name. */
static void find_entries(struct functions *functions)
{
	size_t size;
	char *text = read_file("/proc/kallsyms", &size), *line;

	for (line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
		struct function key, *found;

		if (sscanf(line, "%lx %*c %63s", &key.entry, key.name) != 2)
			continue;
		found = bsearch(&key, functions->list, functions->count, sizeof(key), by_name);
		if (found && key.entry <= found->site && found->site - key.entry <= 4)
			found->entry = key.entry;
	}
	free(text);
}

/* `count` of them, evenly spread over the text, and gcd() among them. */
struct functions choose(size_t count, const char *glob)
{
	struct functions all = all_functions(glob);
	size_t each, gcd = 0;

	keep_known_to_btf(&all);
	find_entries(&all);
	qsort(all.list, all.count, sizeof(*all.list), by_site);
	if (count > all.count)
		count = all.count;
	while (gcd < all.count && strcmp(all.list[gcd].name, "gcd"))
		gcd++;
	if (gcd == all.count)
		die("the kernel has no function", "gcd");
	for (each = 0; each < count; each++) {
		size_t from = each * all.count / count, next = (each + 1) * all.count / count;

		all.list[each] = all.list[from <= gcd && gcd < next ? gcd : from];
	}
	all.count = count;
	return all;
}
