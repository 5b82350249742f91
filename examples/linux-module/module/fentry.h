/* SPDX-License-Identifier: GPL-2.0-only */
/* Between the two C files of this module, and the Rust library: src/kernel.rs, src/exports.rs. */
#ifndef FENTRY_H
#define FENTRY_H

#include <linux/types.h>

struct fentry_tracer;

size_t fentry_size(void);
int fentry_start(struct fentry_tracer *place);
int fentry_end(struct fentry_tracer *tracer);
int fentry_select(struct fentry_tracer *tracer, size_t most);
int fentry_add(struct fentry_tracer *tracer, u64 site);
int fentry_attach(struct fentry_tracer *tracer);
int fentry_measure(struct fentry_tracer *tracer);
int fentry_detach(struct fentry_tracer *tracer);
size_t fentry_selected(const struct fentry_tracer *tracer);
u64 fentry_calls(const struct fentry_tracer *tracer, size_t position, u64 *entry);
/* Calls that took 2^i cycles, and less than twice that, are in bucket i. */
#define FENTRY_BUCKETS 40
u64 fentry_histogram(const struct fentry_tracer *tracer, size_t position, u64 *buckets);
size_t fentry_bytes(const struct fentry_tracer *tracer);

int fentry_kernel_init(void);

int fentry_kernel_read(u64 address, u8 *to, size_t len);
int fentry_kernel_write(u64 address, const u8 *from, size_t len);
void fentry_kernel_write_end(void);
void fentry_kernel_sync_cores(void);
u64 fentry_kernel_images(size_t bytes);
void fentry_kernel_images_free(u64 address);
u8 *fentry_kernel_reserve(size_t bytes);
int fentry_kernel_commit(u8 *base, size_t from, size_t to);
void fentry_kernel_release(u8 *base);
/* A patch site, and the address that it leads to; with FENTRY_JUMP, by a jump, else by a call. */
struct fentry_way {
	u64 site;
	u64 target;
};
#define FENTRY_JUMP 1
/* How sites change: they lead there from now on, or not any more, or there and not elsewhere. */
enum { FENTRY_LEAD, FENTRY_RELEASE, FENTRY_REDIRECT };
int fentry_kernel_lead(const struct fentry_way *ways, size_t count, int change);
u64 fentry_kernel_led(u64 site);
/* How long the calls of fentry_kernel_lead() have taken. */
extern u64 fentry_ftrace_ns;
void fentry_kernel_quiesce(void);
void fentry_kernel_sleep(void);
u8 *fentry_kernel_alloc(size_t bytes);
void fentry_kernel_free(u8 *memory);
void fentry_kernel_log(const u8 *text, size_t len);
void __noreturn fentry_kernel_panic(void);

#endif
