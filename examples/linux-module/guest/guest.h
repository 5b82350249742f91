/* SPDX-License-Identifier: GPL-2.0-only */
/* Between the files of the guest's tool. */
#ifndef GUEST_H
#define GUEST_H

#include <stddef.h>
#include <stdint.h>

/* A function that every way of attaching can attach to. */
struct function {
	uint64_t site;		/* what ftrace calls its address */
	uint64_t entry;		/* what everybody else does: a landing pad may stand between */
	uint32_t btf_id;
	uint32_t arguments;
	char name[64];
};

struct functions {
	struct function *list;
	size_t count;
};

/* Ends the program, with the words and what errno says. */
void __attribute__((noreturn)) die(const char *what, const char *which);
uint64_t now_ns(void);
/* Kilobytes of the guest's memory that nothing uses, once caches are dropped. */
long free_kb(void);
/* The whole of a file, with a zero behind it. */
char *read_file(const char *path, size_t *size);
void write_file(const char *path, const char *text, size_t size);

/* Fills in the BTF ids of functions that are sorted by name, and drops those that have none,
 * or arguments that BPF's trampolines cannot pass. */
void keep_known_to_btf(struct functions *functions);

/* `count` functions whose names match, of all that every way of attaching can attach to, and
 * gcd(). */
struct functions choose(size_t count, const char *glob);

/* Ways of attaching, each with its program counting calls of each function. */
void *bpf_each(const struct functions *functions, uint64_t *load_ns, uint64_t *ns);
void *bpf_kprobe_multi(const struct functions *functions, uint64_t *load_ns, uint64_t *ns);
void *bpf_tracing_multi(const struct functions *functions, uint64_t *load_ns, uint64_t *ns);
/* Ends what one of them began, and gives what it has counted of the function at `position`. */
uint64_t bpf_end(void *attachment, size_t position, uint64_t *ns);

#endif
