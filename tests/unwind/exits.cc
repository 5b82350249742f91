#include <csetjmp>

#define HOOKED __attribute__((noinline, patchable_function_entry(21, 16)))
/* Something to do after a call, so that it is none in tail position. */
#define AFTER __asm__ volatile("" ::: "memory")
#define PLAIN __attribute__((noinline))

extern "C" {
typedef void (*callback)(long);
callback call_back;
void set_callback(callback back) { call_back = back; }

HOOKED long leaf(long n) { call_back(n); return n + 1; }
HOOKED long quiet(long n) { __asm__(""); return n + 3; }

HOOKED long many(long a, long b, long c, long d, long e, long f, long g, long h)
{ call_back(a); return a + 2 * b + 3 * c + 4 * d + 5 * e + 6 * f + 7 * g + 8 * h; }

/* A tail call: the callee returns to whom this would have returned to. */
HOOKED long tail(long n) { __asm__(""); return leaf(n * 2); }
HOOKED long tail_twice(long n) { __asm__(""); return tail(n + 1); }

HOOKED long down(long n) { if (n == 0) { call_back(n); return 1; } long below = down(n - 1); AFTER; return below + n; }

struct Guard { long *count; ~Guard() { ++*count; } };
long guards;
HOOKED long thrower(long n) { Guard guard = {&guards}; if (n == 0) throw 1000L; long below = thrower(n - 1); AFTER; return below + n; }

static thread_local jmp_buf out;
HOOKED long jumper(long n) { if (n == 0) longjmp(out, 7); long below = jumper(n - 1); AFTER; return below + n; }

HOOKED long landing(long n) { int left = setjmp(out); if (left) return left; long a = jumper(n); return a * 2; }

HOOKED long maybe(long n) { if (n) longjmp(out, 7); call_back(n); return n + 1; }

PLAIN long drive_leaf(long n) { long a = leaf(n); return a * 2; }
PLAIN long drive_quiet(long n) { long a = quiet(n); return a * 2; }
PLAIN long drive_many(long n) { long a = many(n, 1, 2, 3, 4, 5, 6, 7); return a * 2; }
PLAIN long drive_tail(long n) { long a = tail_twice(n); return a * 2; }
PLAIN long drive_down(long n) { long a = down(n); return a * 2; }
PLAIN long drive_throw(long n) { try { long a = thrower(n); return a * 2; } catch (long thrown) { return thrown + n; } }
PLAIN long drive_jump(long n) { int left = setjmp(out); if (left) return left; long a = jumper(n); return a * 2; }
PLAIN long drive_left(long n) { if (setjmp(out)) return quiet(n) * 2; long a = jumper(n); return a * 2; }
PLAIN long drive_landing(long n) { long a = landing(n); return a * 2; }
/* Two calls of one function, with its return address in one place. */
PLAIN long drive_maybe(long n)
{
  if (setjmp(out)) return 7;
  if (n) { long a = maybe(n); __asm__ volatile("nop" ::: "memory"); return a; }
  long a = maybe(n);
  __asm__ volatile("nop; nop" ::: "memory");
  return a * 2;
}
PLAIN long guards_run(long) { return guards; }
}
