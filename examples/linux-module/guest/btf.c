// SPDX-License-Identifier: GPL-2.0-only
/* Which functions the kernel's BTF knows: Documentation/bpf/btf.rst. */
#include <linux/btf.h>
#include <stdlib.h>
#include <string.h>

#include "guest.h"

static const char *strings;
static const struct btf_type **types;
static uint32_t types_count;

/* Bytes behind a type, which depend on its kind. */
static size_t extra(const struct btf_type *type)
{
	uint32_t count = BTF_INFO_VLEN(type->info);

	switch (BTF_INFO_KIND(type->info)) {
	case BTF_KIND_INT: return sizeof(uint32_t);
	case BTF_KIND_ARRAY: return sizeof(struct btf_array);
	case BTF_KIND_STRUCT:
	case BTF_KIND_UNION: return count * sizeof(struct btf_member);
	case BTF_KIND_ENUM: return count * sizeof(struct btf_enum);
	case BTF_KIND_FUNC_PROTO: return count * sizeof(struct btf_param);
	case BTF_KIND_VAR: return sizeof(struct btf_var);
	case BTF_KIND_DATASEC: return count * sizeof(struct btf_var_secinfo);
	case BTF_KIND_DECL_TAG: return sizeof(struct btf_decl_tag);
	case BTF_KIND_ENUM64: return count * sizeof(struct btf_enum64);
	default: return 0;
	}
}

static void load_types(void)
{
	size_t size;
	const char *file = read_file("/sys/kernel/btf/vmlinux", &size);
	const struct btf_header *header = (const void *)file;
	const char *at = file + header->hdr_len + header->type_off;
	const char *end = at + header->type_len;

	strings = file + header->hdr_len + header->str_off;
	types = calloc(header->type_len / sizeof(struct btf_type) + 1, sizeof(*types));
	/* Type 0 is void, and stands nowhere. */
	for (types_count = 1; at < end; types_count++) {
		types[types_count] = (const void *)at;
		at += sizeof(struct btf_type) + extra(types[types_count]);
	}
}

/* Whether a value of this type is in one register, or is nothing. */
static int is_in_register(uint32_t id)
{
	for (;;) {
		if (!id)
			return 1;
		if (id >= types_count)
			return 0;
		switch (BTF_INFO_KIND(types[id]->info)) {
		case BTF_KIND_TYPEDEF:
		case BTF_KIND_VOLATILE:
		case BTF_KIND_CONST:
		case BTF_KIND_RESTRICT:
		case BTF_KIND_TYPE_TAG:
			id = types[id]->type;
			break;
		case BTF_KIND_INT:
			return types[id]->size <= 8;
		case BTF_KIND_PTR:
		case BTF_KIND_ENUM:
		case BTF_KIND_ENUM64:
			return 1;
		default:
			return 0;
		}
	}
}

/* How many arguments the function has, all in registers; -1 if it is none of those. */
static int arguments(const struct btf_type *function)
{
	const struct btf_type *proto = types[function->type];
	const struct btf_param *params = (const void *)(proto + 1);
	int count = BTF_INFO_VLEN(proto->info), each;

	if (count > 6 || !is_in_register(proto->type))
		return -1;
	for (each = 0; each < count; each++) {
		/* A parameter without a type is the dots of a variadic function. */
		if (!params[each].type || !is_in_register(params[each].type))
			return -1;
	}
	return count;
}

static int by_name(const void *name, const void *function)
{
	return strcmp(name, ((const struct function *)function)->name);
}

void keep_known_to_btf(struct functions *functions)
{
	size_t kept = 0, each;
	uint32_t id;

	load_types();
	for (id = 1; id < types_count; id++) {
		struct function *found;
		int count;

		if (BTF_INFO_KIND(types[id]->info) != BTF_KIND_FUNC)
			continue;
		found = bsearch(strings + types[id]->name_off, functions->list, functions->count,
				sizeof(*found), by_name);
		count = arguments(types[id]);
		if (!found)
			continue;
		/* Two functions of one name cannot be told apart. */
		found->btf_id = found->btf_id || count < 0 ? UINT32_MAX : id;
		found->arguments = count;
	}
	for (each = 0; each < functions->count; each++) {
		uint32_t of_it = functions->list[each].btf_id;

		if (of_it && of_it != UINT32_MAX)
			functions->list[kept++] = functions->list[each];
	}
	functions->count = kept;
}
