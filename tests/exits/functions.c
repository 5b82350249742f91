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
