// SPDX-License-Identifier: GPL-2.0-only
/*
 * The guest's tool.
 *
 *   guest functions COUNT [GLOB]   prints COUNT functions, spread over the kernel's text, of
 *                                  those that every way of attaching can attach to
 *   guest select FILE              has the module select the functions that were printed
 *   guest row WAY FILE             attaches to them, measures, detaches; WAY is one of `ways`
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "guest.h"

#define MODULE "/sys/kernel/debug/fentry/"

/* Calls that a cost is measured over, and how often that is done. */
#define CALLS 100000
#define RUNS 15

void die(const char *what, const char *which)
{
	printf("guest: error: %s %s: %s\n", what, which, strerror(errno));
	exit(1);
}

uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000ull + now.tv_nsec;
}

char *read_file(const char *path, size_t *size)
{
	int file = open(path, O_RDONLY);
	char *text = NULL;
	ssize_t got;

	if (file < 0)
		die("cannot open", path);
	*size = 0;
	do {
		text = realloc(text, *size + 65537);
		got = text ? read(file, text + *size, 65536) : -1;
		if (got < 0)
			die("cannot read", path);
		*size += got;
	} while (got);
	text[*size] = 0;
	close(file);
	return text;
}

void write_file(const char *path, const char *text, size_t size)
{
	int file = open(path, O_WRONLY);

	if (file < 0)
		die("cannot open", path);
	while (size) {
		ssize_t done = write(file, text, size);

		if (done <= 0)
			die("cannot write", path);
		text += done;
		size -= done;
	}
	close(file);
}

static void command(const char *text)
{
	write_file(MODULE "control", text, strlen(text));
}

static long free_kb_now(void)
{
	size_t size;
	char *text, *at;
	long kb;

	write_file("/proc/sys/vm/drop_caches", "3", 1);
	text = read_file("/proc/meminfo", &size);
	at = strstr(text, "MemFree:");
	kb = at ? atol(at + 8) : 0;
	free(text);
	return kb;
}

long free_kb(void)
{
	long before, kb = free_kb_now();
	int look = 0;

	/* What was freed waits for a grace period, and for a worker after that. */
	do {
		before = kb;
		usleep(500000);
		kb = free_kb_now();
	} while (labs(kb - before) > 100 && ++look < 10);
	return kb;
}

/* The number behind `key` in the module's status. */
static uint64_t status(const char *key)
{
	size_t size;
	char *text = read_file(MODULE "status", &size), *at = strstr(text, key);
	uint64_t number = at ? strtoull(at + strlen(key), NULL, 10) : 0;

	free(text);
	return number;
}

/* What `functions` has printed. */
static struct functions read_functions(const char *path)
{
	size_t size;
	char *text = read_file(path, &size), *line;
	struct functions functions = { calloc(size / 16 + 1, sizeof(struct function)), 0 };

	for (line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
		struct function *function = &functions.list[functions.count];

		if (sscanf(line, "%lx %lx %u %u %63s", &function->site, &function->entry,
			   &function->btf_id, &function->arguments, function->name) == 5)
			functions.count++;
	}
	free(text);
	return functions;
}

/* Has the module select these functions. */
static void module_select(const struct functions *functions)
{
	char text[4096];
	size_t each, size = snprintf(text, sizeof(text), "select %zu", functions->count);

	command(text);
	for (each = size = 0; each < functions->count; each++) {
		size += snprintf(text + size, sizeof(text) - size, "%lx\n",
				 functions->list[each].site);
		if (size > sizeof(text) - 32 || each + 1 == functions->count) {
			write_file(MODULE "functions", text, size);
			size = 0;
		}
	}
	if (status("functions=") != functions->count)
		printf("guest: %zu of %zu functions are selected\n", (size_t)status("functions="),
		       functions->count);
}

/* What attaching by one way costs. */
struct costs {
	uint64_t load_ns, attach_ns, ftrace_ns, detach_ns, calls;
	long kb, own_kb;
	double call_ns;
};

/* What one call of gcd() costs now, in nanoseconds: the least of all runs. */
static double call_cost(void)
{
	uint64_t least = UINT64_MAX;
	char text[32];
	int run;

	snprintf(text, sizeof(text), "bench %d", CALLS);
	for (run = 0; run < RUNS; run++) {
		command(text);
		if (status("bench_ns=") < least)
			least = status("bench_ns=");
	}
	return (double)least / CALLS;
}

/* Calls of gcd() that the module has counted. */
static uint64_t counted(void)
{
	size_t size;
	char *text = read_file(MODULE "counters", &size), *at = strstr(text, " gcd\n");
	uint64_t calls;

	while (at && at > text && at[-1] != '\n')
		at--;
	calls = at ? strtoull(at, NULL, 10) : 0;
	free(text);
	return calls;
}

static void by_module(const struct functions *functions, struct costs *costs)
{
	long before = free_kb();
	uint64_t start = now_ns();

	module_select(functions);
	costs->load_ns = now_ns() - start;
	command("attach");
	costs->attach_ns = status("attach_ns=");
	costs->ftrace_ns = status("ftrace_ns=");
	costs->kb = before - free_kb();
	costs->call_ns = call_cost();
	costs->own_kb = status("bytes=") / 1024;
	costs->calls = counted();
	command("detach");
	costs->detach_ns = status("detach_ns=");
	command("select 0");
}

static size_t position_of_gcd(const struct functions *functions)
{
	size_t each = 0;

	while (strcmp(functions->list[each].name, "gcd"))
		each++;
	return each;
}

typedef void *attach_way(const struct functions *, uint64_t *, uint64_t *);

static void by_bpf(attach_way *way, const struct functions *functions, struct costs *costs)
{
	long before = free_kb();
	void *attachment = way(functions, &costs->load_ns, &costs->attach_ns);

	costs->kb = before - free_kb();
	costs->call_ns = call_cost();
	costs->calls = bpf_end(attachment, position_of_gcd(functions), &costs->detach_ns);
}

static const struct {
	const char *name;
	attach_way *bpf;
} ways[] = {
	{ "none", NULL },
	{ "fentry", NULL },
	{ "bpf-each", bpf_each },
	{ "kprobe-multi", bpf_kprobe_multi },
	{ "tracing-multi", bpf_tracing_multi },
};

/* Attaches and detaches once, by the way at `way`. */
static void once(size_t way, const struct functions *functions, struct costs *costs)
{
	if (ways[way].bpf)
		by_bpf(ways[way].bpf, functions, costs);
	else if (way)
		by_module(functions, costs);
	else
		costs->call_ns = call_cost();
	if (way && costs->calls != RUNS * CALLS)
		printf("guest: error: %s has counted %lu of %d calls\n", ways[way].name,
		       costs->calls, RUNS * CALLS);
}

static uint64_t least(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static void row(const char *name, const char *path)
{
	struct functions functions = read_functions(path);
	struct costs costs = { 0 };
	uint64_t spent_ns;
	size_t way = 0, times;

	while (way < sizeof(ways) / sizeof(*ways) && strcmp(ways[way].name, name))
		way++;
	if (way == sizeof(ways) / sizeof(*ways))
		die("there is no way", name);
	/* Memory is what the first time takes: what it gives back is there for the others. */
	once(way, &functions, &costs);
	spent_ns = costs.attach_ns + costs.detach_ns;
	/* What takes long is not much disturbed by what else the machine does. */
	for (times = 1; times < 5 && spent_ns < 15000000000; times++) {
		struct costs again = { 0 };

		once(way, &functions, &again);
		spent_ns += again.attach_ns + again.detach_ns;
		costs.load_ns = least(costs.load_ns, again.load_ns);
		if (again.attach_ns < costs.attach_ns) {
			costs.attach_ns = again.attach_ns;
			costs.ftrace_ns = again.ftrace_ns;
		}
		costs.detach_ns = least(costs.detach_ns, again.detach_ns);
		if (again.call_ns < costs.call_ns)
			costs.call_ns = again.call_ns;
	}
	printf("row: way=%s functions=%zu times=%zu load_us=%lu attach_us=%lu ftrace_us=%lu "
	       "detach_us=%lu kb=%ld own_kb=%ld call_ns=%.1f calls=%lu\n", name,
	       way ? functions.count : 0, times, costs.load_ns / 1000, costs.attach_ns / 1000,
	       costs.ftrace_ns / 1000, costs.detach_ns / 1000, costs.kb, costs.own_kb, costs.call_ns,
	       costs.calls);
}

int main(int argc, char **argv)
{
	/* One file for each program and each link. */
	struct rlimit files = { 65536, 65536 };

	if (setrlimit(RLIMIT_NOFILE, &files))
		die("cannot have so many", "files");
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc >= 3 && !strcmp(argv[1], "functions")) {
		struct functions functions = choose(atol(argv[2]), argc > 3 ? argv[3] : "*");
		struct function *it = functions.list;

		for (; it < functions.list + functions.count; it++)
			printf("%lx %lx %u %u %s\n", it->site, it->entry, it->btf_id, it->arguments,
			       it->name);
	} else if (argc == 3 && !strcmp(argv[1], "select")) {
		struct functions functions = read_functions(argv[2]);

		module_select(&functions);
	} else if (argc == 4 && !strcmp(argv[1], "row")) {
		row(argv[2], argv[3]);
	} else {
		fprintf(stderr, "usage: guest functions COUNT [GLOB] | select FILE | row WAY FILE\n");
		return 1;
	}
	return 0;
}
