/* Leaves functions by longjmp, in the ways in which C programs do: to a handler further out, out of
 * a callback that the C library has called, out of a variadic function, over frames that have
 * grown, out of a signal handler. Every function counts that it was called, and that it returned. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#define PLAIN __attribute__((noinline))
#define BARE __attribute__((noinline, patchable_function_entry(0, 0)))
#define CALLED counted.calls++
#define RETURN(value) do { u64 value_ = (value); counted.returned++; return value_; } while (0)

typedef unsigned long u64;

struct counted { u64 calls, returned; };
static __thread struct counted counted;

/* The handlers of this thread, the innermost first. */
struct handler { sigjmp_buf out; struct handler *outer; };
static __thread struct handler *innermost;
static __thread u64 checksum;

static void mix(u64 value) __attribute__((always_inline));
static inline void mix(u64 value) {
  checksum = (checksum ^ value) * 0x9e3779b97f4a7c15ul;
  checksum ^= checksum >> 29;
}

PLAIN static u64 fail(u64 code) {
  CALLED;
  mix(code);
  struct handler *to = innermost;
  innermost = to->outer;
  siglongjmp(to->out, (int)code + 1);
}

PLAIN static u64 check(int good, u64 code, const char *text, ...) {
  CALLED;
  va_list list;
  va_start(list, text);
  while (*text) mix(*text++ == 'd' ? (u64)va_arg(list, double) : va_arg(list, u64));
  va_end(list);
  if (!good) fail(code);
  RETURN(code);
}

typedef u64 (*body)(u64);

/* What the body returns, or 1000 more than the code that it failed with. */
PLAIN static u64 protect(body run, u64 argument) {
  CALLED;
  struct handler here = {.outer = innermost};
  innermost = &here;
  int left = sigsetjmp(here.out, 1);
  if (left) RETURN(1000 + (u64)left);
  u64 result = run(argument);
  innermost = here.outer;
  RETURN(result);
}

PLAIN static u64 fall(u64 depth) {
  CALLED;
  if (depth == 0) fail(7);
  u64 result = fall(depth - 1);
  RETURN(result + 1);
}

/* Every third level has a handler, and every second of these fails further out. */
PLAIN static u64 staged(u64 depth) {
  CALLED;
  check(1, depth, "udu", depth, (double)depth, depth);
  if (depth == 0) check(0, 3, "du", 3.0, 4ul);
  u64 result = depth % 3 ? staged(depth - 1) : protect(staged, depth - 1);
  if (result > 1000 && depth % 6 == 0) fail(result % 50);
  RETURN(result + depth);
}

/* Calls from further and further down in its own frame. */
PLAIN static u64 grow(u64 steps) {
  CALLED;
  u64 sum = 0;
  for (u64 step = 0; step < steps; step++) {
    volatile char *room = __builtin_alloca(16 + 48 * step);
    room[0] = 1;
    sum += protect(fall, step % 5) + (u64)room[0];
  }
  RETURN(sum);
}

PLAIN static int compare(const void *a, const void *b) {
  CALLED;
  u64 x = *(const u64 *)a, y = *(const u64 *)b;
  if (x == 13 && y % 4 == 1) fail(13);
  int order = x < y ? -1 : x > y;
  counted.returned++;
  return order;
}

PLAIN static u64 sort(u64 count) {
  CALLED;
  u64 values[32];
  for (u64 n = 0; n < 32; n++) values[n] = (n * 7 + count) % 32;
  qsort(values, count, sizeof *values, compare);
  for (u64 n = 0; n < count; n++) mix(values[n]);
  RETURN(count);
}

PLAIN static void on_signal(int number) {
  CALLED;
  fail((u64)number);
}

PLAIN static u64 interrupted(u64 depth) {
  CALLED;
  if (depth == 0) raise(SIGUSR2);
  u64 result = interrupted(depth - 1);
  RETURN(result + 1);
}

PLAIN static u64 quiet(u64 value) { CALLED; RETURN(value + 3); }

/* Is come back to again and again, and returns only then. */
PLAIN static u64 again(u64 times) {
  CALLED;
  struct handler here = {.outer = innermost};
  volatile u64 left = 0;
  sigsetjmp(here.out, 0);
  if (++left <= times) {
    innermost = &here;
    fall(left % 9);
  }
  RETURN(left);
}

/* The same where the function that is come back to is not hooked. */
BARE static u64 again_unhooked(u64 times) {
  struct handler here = {.outer = innermost};
  volatile u64 left = 0;
  sigsetjmp(here.out, 0);
  if (++left <= times) {
    innermost = &here;
    fall(left % 9);
  }
  return quiet(left);
}

BARE u64 run(u64 seed, u64 rounds, struct counted *result) {
  counted = (struct counted){0};
  checksum = seed;
  signal(SIGUSR2, on_signal);
  for (u64 round = 0; round < rounds; round++) {
    mix(protect(fall, (seed + round) % 40));
    mix(protect(staged, (seed * 3 + round) % 50));
    mix(protect(grow, round % 12));
    mix(protect(sort, (seed + round) % 33));
    mix(protect(interrupted, round % 6));
    mix(protect(again, round % 20));
    mix(protect(quiet, round));
    mix(again_unhooked(round % 20));
  }
  *result = counted;
  return checksum;
}
