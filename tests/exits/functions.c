#include <ucontext.h>

int identity(int value) { return value; }
double half(double value) { return value / 2; }
long many(long a, long b, long c, long d, long e, long f, long g, long h) {
    return a + 2 * b + 3 * c + 4 * d + 5 * e + 6 * f + 7 * g + 8 * h;
}
__attribute__((noinline)) long down(long depth) {
    if (depth == 0) return 1;
    long below = down(depth - 1);
    // Or it would be a loop.
    __asm__ volatile("" : "+r"(below));
    return below + 1;
}
long inner(long value) { return value + 1; }
long outer(long value) { return inner(value) * 10; }
int instead(int value) { return -value; }
int never(int value) { __builtin_trap(); return value; }

// Two stacks, on each of which the same hooked function runs and gives way to the other.
#define BARE __attribute__((noinline, patchable_function_entry(0, 0)))
static ucontext_t back, contexts[2];
static char stacks[2][1 << 16];
static long sum;
static int ended;
BARE static void give_way(int self) { swapcontext(&contexts[self], &contexts[1 - self]); }
__attribute__((noinline)) long switching(int self, long value) {
    give_way(self);
    return value;
}
BARE static void work(int self) {
    for (long value = 1; value <= 3; value++) sum += switching(self, value);
    if (++ended < 2) give_way(self);
    setcontext(&back);
}
BARE long two_stacks(void) {
    sum = ended = 0;
    for (int self = 0; self < 2; self++) {
        getcontext(&contexts[self]);
        contexts[self].uc_stack.ss_sp = stacks[self];
        contexts[self].uc_stack.ss_size = sizeof stacks[self];
        makecontext(&contexts[self], (void (*)(void))work, 1, self);
    }
    swapcontext(&back, &contexts[0]);
    return sum;
}
