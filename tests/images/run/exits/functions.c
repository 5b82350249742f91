/* The functions that are hooked (f_*), and what calls them (drive*, which is not hooked). */
#include <immintrin.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#define F __attribute__((noinline, noclone))
/* No optimiser moves anything past this. */
#define BARRIER __asm__ volatile("" ::: "memory")

/* Where the test emits images: text, so that direct calls reach it. */
__asm__(".pushsection .text\n.p2align 12\n.globl ground\nground: .skip 262144, 0xcc\n.popsection");

typedef struct { long a, b; } longs;
typedef struct { double a, b; } doubles;
typedef struct { long a; double b; } long_double_pair;
typedef struct { double a; long b; } double_long_pair;
typedef struct { long words[8]; } big;

F int f_int(int a, int b) { return a * 3 + b; }
F long f_many(long a, long b, long c, long d, long e, long f, long g, long h, long i, long j) {
    return a + 2 * b + 3 * c + 4 * d + 5 * e + 6 * f + 7 * g + 8 * h + 9 * i + 10 * j;
}
F __int128 f_wide(long a, long b) { return (__int128)a * b; }
F float f_float(float a, float b) { return a / b; }
F double f_doubles10(double a, double b, double c, double d, double e, double f, double g,
                     double h, double i, double j) {
    return a - 2 * b + 3 * c - 4 * d + 5 * e - 6 * f + 7 * g - 8 * h + 9 * i - 10 * j;
}
F long double f_x87(long double a, int b) { return a / b; }
F _Complex double f_complex(_Complex double a, double b) { return a * b; }
F _Complex long double f_complex_x87(_Complex long double a, long double b) { return a * b; }
F longs f_longs(long a, long b) { return (longs){ b, a }; }
F doubles f_pair(double a, double b) { return (doubles){ b, a }; }
F long_double_pair f_mixed(long a, double b) { return (long_double_pair){ a + 1, b + 1 }; }
F double_long_pair f_mixed_back(long a, double b) { return (double_long_pair){ b + 2, a + 2 }; }
F big f_big(big in, long by) {
    big out;
    for (int i = 0; i < 8; i++) out.words[i] = in.words[7 - i] * by;
    return out;
}
F double f_variadic(int count, ...) {
    double sum = 0;
    va_list list;
    va_start(list, count);
    for (int i = 0; i < count; i++) sum += va_arg(list, long) * va_arg(list, double);
    va_end(list);
    return sum;
}
F void f_void(long *to) { *to += 11; }
__attribute__((target("avx"))) F __m256d f_m256(__m256d a, __m256d b) { return _mm256_sub_pd(a, b); }
__attribute__((target("avx512f"))) F __m512d f_m512(__m512d a, __m512d b) {
    return _mm512_sub_pd(a, b);
}

#define PUT(call, bytes) do { __typeof__(call) value = (call); \
    memcpy(out, &value, (bytes)); out += (bytes); } while (0)

/* Calls each of the first 15 once; the bytes of what they returned, one after the other. */
long drive(unsigned char *out, long k) {
    unsigned char *start = out;
    long cell = k;
    big in = { { k, 2, k, 4, k, 6, k, 8 } };
    PUT(f_int(k, 5), 4);
    PUT(f_many(k, 2, 3, 4, 5, 6, 7, k, 9, 10), 8);
    PUT(f_wide(k << 40, k << 41), 16);
    PUT(f_float(k, 7), 4);
    PUT(f_doubles10(k, 2, 3, 4, 5, 6, 7, 8, 9, k), 8);
    PUT(f_x87(k, 3), 10);
    PUT(f_complex(k + 1.5i, 3), 16);
    _Complex long double complex = f_complex_x87(k + 1.5i, 1.0L / 3);
    PUT(__real__ complex, 10);
    PUT(__imag__ complex, 10);
    PUT(f_longs(k, 2), 16);
    PUT(f_pair(k, 2), 16);
    PUT(f_mixed(k, 0.5), 16);
    PUT(f_mixed_back(k, 0.5), 16);
    PUT(f_big(in, k), 64);
    PUT(f_variadic(3, k, 1.5, 2L, 2.5, 3L, (double)k), 8);
    f_void(&cell);
    PUT(cell, 8);
    return out - start;
}
__attribute__((target("avx"))) void drive_m256(double *out, double k) {
    _mm256_storeu_pd(out, f_m256(_mm256_set_pd(k, 2, 3, 4), _mm256_set_pd(8, 7, k, 5)));
}
__attribute__((target("avx512f"))) void drive_m512(double *out, double k) {
    _mm512_storeu_pd(out, f_m512(_mm512_set_pd(k, 2, 3, 4, 5, 6, 7, 8),
                                 _mm512_set_pd(8, 7, k, 5, 4, 3, 2, 1)));
}

F long f_leaf(long n) { return n + 1; }
F long f_down(long n) {
    if (n == 0) return f_leaf(0);
    long below = f_down(n - 1);
    BARRIER;
    return below + n;
}
long drive_down(long n) { return f_down(n); }

F long f_last(long n) { return n + 1; }
F long f_middle(long n) { return f_last(n * 2); }
F long f_first(long n) { return f_middle(n + 3); }
/* The first and the last call push their return addresses to the same place. */
long drive_tail(long n) {
    long a = f_first(n);
    BARRIER;
    long b = f_leaf(n);
    BARRIER;
    return a * 1000 + b;
}

static __thread jmp_buf back;
F long f_jumps(long n) {
    if (n == 0) longjmp(back, 7);
    long below = f_jumps(n - 1);
    BARRIER;
    return below + 1;
}
F long f_catches(long n) {
    if (setjmp(back)) return n * 10;
    return f_jumps(n);
}
/* Caught in a hooked function, whose exit finds the frames above its own. */
long drive_catches(long n) { return f_catches(n); }
/* Caught outside: the next call meets the frames. */
long drive_jumps(long n) {
    if (setjmp(back)) {
        BARRIER;
        return f_leaf(n);
    }
    return f_jumps(n);
}

/* Its frames are further from here than what a signal handler needs. */
F long far(long n) {
    volatile char much[32768];
    much[n] = 1;
    long below = f_jumps(n);
    BARRIER;
    return below + much[n];
}
long drive_far(long n) {
    if (setjmp(back)) {
        BARRIER;
        return f_leaf(n);
    }
    return far(n);
}
F long f_catches_far(long n) {
    if (setjmp(back)) return n * 10;
    return far(n);
}
long drive_catches_far(long n) { return f_catches_far(n); }
