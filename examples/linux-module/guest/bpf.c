// SPDX-License-Identifier: GPL-2.0-only
/* BPF's ways of attaching to functions, by bpf(2) alone. */
#include <errno.h>
#include <linux/bpf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "guest.h"

/* What is open while something is attached. */
struct attachment {
	int map;
	uint64_t *calls;
	size_t bytes;
	int *files;
	size_t files_count;
};

static int bpf(enum bpf_cmd command, union bpf_attr *attr)
{
	return syscall(SYS_bpf, command, attr, sizeof(*attr));
}

/* A map of one value: a counter for each function. */
static struct attachment *begin(size_t count)
{
	struct attachment *attachment = calloc(1, sizeof(*attachment));
	union bpf_attr attr = {
		.map_type = BPF_MAP_TYPE_ARRAY,
		.key_size = 4,
		.value_size = count * sizeof(uint64_t),
		.max_entries = 1,
		.map_flags = BPF_F_MMAPABLE,
	};

	attachment->bytes = (attr.value_size + 4095) & ~(size_t)4095;
	attachment->map = bpf(BPF_MAP_CREATE, &attr);
	attachment->calls = mmap(NULL, attachment->bytes, PROT_READ, MAP_SHARED,
				 attachment->map, 0);
	if (attachment->map < 0 || attachment->calls == MAP_FAILED)
		die("a map for counters", "bpf");
	attachment->files = calloc(2 * count + 2, sizeof(int));
	return attachment;
}

#define INSN(c, d, s, o, i) \
	((struct bpf_insn){ .code = c, .dst_reg = d, .src_reg = s, .off = o, .imm = i })

/* Two instructions: the address of a counter. */
#define COUNTER(reg, map, offset) \
	INSN(BPF_LD | BPF_DW | BPF_IMM, reg, BPF_PSEUDO_MAP_VALUE, 0, map), INSN(0, 0, 0, 0, offset)

/* Three: one is added to it. */
#define COUNT(reg) \
	INSN(BPF_ALU64 | BPF_MOV | BPF_K, 2, 0, 0, 1), \
	INSN(BPF_STX | BPF_DW | BPF_ATOMIC, reg, 2, 0, BPF_ADD)

#define END \
	INSN(BPF_ALU64 | BPF_MOV | BPF_K, 0, 0, 0, 0), INSN(BPF_JMP | BPF_EXIT, 0, 0, 0, 0)

static int load(const struct bpf_insn *insns, size_t count, enum bpf_prog_type type,
		enum bpf_attach_type expected, uint32_t btf_id)
{
	static char log[4096];
	union bpf_attr attr = {
		.prog_type = type,
		.insns = (uintptr_t)insns,
		.insn_cnt = count,
		.license = (uintptr_t)"GPL",
		.expected_attach_type = expected,
		.attach_btf_id = btf_id,
	};
	int program = bpf(BPF_PROG_LOAD, &attr);

	if (program < 0 && errno != ENOENT && errno != EINVAL) {
		attr.log_buf = (uintptr_t)log;
		attr.log_size = sizeof(log);
		attr.log_level = 1;
		bpf(BPF_PROG_LOAD, &attr);
		fprintf(stderr, "%s\n", log);
	}
	return program;
}

/* A program for any number of functions: the cookie is the function's position. */
static int load_for_many(struct attachment *attachment, size_t count, enum bpf_prog_type type,
			 enum bpf_attach_type expected)
{
	const struct bpf_insn insns[] = {
		INSN(BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_get_attach_cookie),
		INSN(BPF_JMP | BPF_JGT | BPF_K, 0, 0, 6, (int)count - 1),
		INSN(BPF_ALU64 | BPF_LSH | BPF_K, 0, 0, 0, 3),
		COUNTER(1, attachment->map, 0),
		INSN(BPF_ALU64 | BPF_ADD | BPF_X, 1, 0, 0, 0),
		COUNT(1),
		END,
	};

	return load(insns, sizeof(insns) / sizeof(*insns), type, expected, 0);
}

/* One program and one trampoline for each function. */
void *bpf_each(const struct functions *functions, uint64_t *load_ns, uint64_t *ns)
{
	struct attachment *attachment = begin(functions->count);
	uint64_t start = now_ns();
	size_t each;

	for (each = 0; each < functions->count; each++) {
		const struct bpf_insn insns[] = {
			COUNTER(1, attachment->map, 8 * each), COUNT(1), END,
		};
		int program = load(insns, sizeof(insns) / sizeof(*insns), BPF_PROG_TYPE_TRACING,
				   BPF_TRACE_FENTRY, functions->list[each].btf_id);

		if (program < 0)
			die("a program for", functions->list[each].name);
		attachment->files[attachment->files_count++] = program;
	}
	*load_ns = now_ns() - start;
	start = now_ns();
	for (each = 0; each < functions->count; each++) {
		union bpf_attr attr = { .raw_tracepoint.prog_fd = attachment->files[each] };
		int link = bpf(BPF_RAW_TRACEPOINT_OPEN, &attr);

		if (link < 0)
			die("a trampoline for", functions->list[each].name);
		attachment->files[attachment->files_count++] = link;
		/* What takes many minutes says that it goes on. */
		if ((each + 1) % 1000 == 0 && functions->count > 1000)
			printf("guest: %zu of %zu trampolines after %lu ms\n", each + 1,
			       functions->count, (now_ns() - start) / 1000000);
	}
	*ns = now_ns() - start;
	return attachment;
}

static void *many(const struct functions *functions, enum bpf_prog_type type,
		  enum bpf_attach_type expected, uint64_t *load_ns, uint64_t *ns)
{
	struct attachment *attachment = begin(functions->count);
	uint64_t *entries = calloc(functions->count, sizeof(*entries));
	uint64_t *cookies = calloc(functions->count, sizeof(*cookies));
	uint32_t *ids = calloc(functions->count, sizeof(*ids));
	union bpf_attr attr = { 0 };
	uint64_t start = now_ns();
	size_t each;
	int link;

	for (each = 0; each < functions->count; each++) {
		entries[each] = functions->list[each].entry;
		ids[each] = functions->list[each].btf_id;
		cookies[each] = each;
	}
	attr.link_create.prog_fd = load_for_many(attachment, functions->count, type, expected);
	if ((int)attr.link_create.prog_fd < 0)
		die("a program for many functions", "bpf");
	*load_ns = now_ns() - start;
	attr.link_create.attach_type = expected;
	if (type == BPF_PROG_TYPE_KPROBE) {
		attr.link_create.kprobe_multi.cnt = functions->count;
		attr.link_create.kprobe_multi.addrs = (uintptr_t)entries;
		attr.link_create.kprobe_multi.cookies = (uintptr_t)cookies;
	} else {
		attr.link_create.tracing_multi.cnt = functions->count;
		attr.link_create.tracing_multi.ids = (uintptr_t)ids;
		attr.link_create.tracing_multi.cookies = (uintptr_t)cookies;
	}
	start = now_ns();
	link = bpf(BPF_LINK_CREATE, &attr);
	*ns = now_ns() - start;
	if (link < 0)
		die("a link for many functions", "bpf");
	attachment->files[attachment->files_count++] = attr.link_create.prog_fd;
	attachment->files[attachment->files_count++] = link;
	free(entries);
	free(cookies);
	free(ids);
	return attachment;
}

void *bpf_kprobe_multi(const struct functions *functions, uint64_t *load_ns, uint64_t *ns)
{
	return many(functions, BPF_PROG_TYPE_KPROBE, BPF_TRACE_KPROBE_MULTI, load_ns, ns);
}

void *bpf_tracing_multi(const struct functions *functions, uint64_t *load_ns, uint64_t *ns)
{
	return many(functions, BPF_PROG_TYPE_TRACING, BPF_TRACE_FENTRY_MULTI, load_ns, ns);
}

uint64_t bpf_end(void *handle, size_t position, uint64_t *ns)
{
	struct attachment *attachment = handle;
	uint64_t start = now_ns(), calls = attachment->calls[position];

	/* Links first: they are what is attached. */
	while (attachment->files_count)
		close(attachment->files[--attachment->files_count]);
	*ns = now_ns() - start;
	munmap(attachment->calls, attachment->bytes);
	close(attachment->map);
	free(attachment->files);
	free(attachment);
	return calls;
}
