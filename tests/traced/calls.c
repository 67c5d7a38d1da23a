/*
 * Functions of every kind, for tracing. A check calls them, and returns 0, or the line of the first wrong result.
 * Every function without PLAIN has a site.
 */
#include <complex.h>
#include <stdarg.h>

#define NOINLINE __attribute__((noinline, noclone, noipa))
#define PLAIN __attribute__((noinline, noclone, no_instrument_function, patchable_function_entry(0)))
#define DEMAND(it) do { if (!(it)) return __LINE__; } while (0)

NOINLINE long fib(long n)
{
	if (n < 2)
		return n;
	long a = fib(n - 1), b = fib(n - 2);
	/* Otherwise the second call would become a loop. */
	__asm__ volatile("" : "+r"(a), "+r"(b));
	return a + b;
}
PLAIN long check_recursion(void) { DEMAND(fib(15) == 610); return 0; }

/* These functions end with a jump to each other. */
int is_odd(long n);
NOINLINE int is_even(long n) { return n == 0 ? 1 : is_odd(n - 1); }
NOINLINE int is_odd(long n) { return n == 0 ? 0 : is_even(n - 1); }
PLAIN long check_tail(void) { DEMAND(is_even(100) == 1 && is_even(101) == 0); return 0; }
PLAIN long check_deep_tail(void) { DEMAND(is_even(5000) == 1 && is_even(5001) == 0); return 0; }

NOINLINE long down(long n) { long m = n == 0 ? 0 : down(n - 1); __asm__ volatile("" : "+r"(m)); return m + 1; }
PLAIN long check_deep(void) { DEMAND(down(2999) == 3000); return 0; }

/* A leaf that keeps sixteen words below its stack pointer. */
long red_zone(long n);
__asm__(".pushsection .text\n.globl red_zone\n.type red_zone, @function\n"
	"red_zone:\n0: nop; nop; nop; nop; nop\n"
	"	.set at, 8\n.rept 16\n	mov %rdi, -at(%rsp)\n	add $1, %rdi\n	.set at, at + 8\n.endr\n"
	"	xor %eax, %eax\n"
	"	.set at, 8\n.rept 16\n	add -at(%rsp), %rax\n	.set at, at + 8\n.endr\n"
	"	ret\n.size red_zone, . - red_zone\n.popsection\n"
	".pushsection __patchable_function_entries, \"awo\", @progbits, .text\n.balign 8\n.quad 0b\n.popsection\n");
PLAIN long check_red_zone(void) { DEMAND(red_zone(5) == 16 * 5 + 120); return 0; }

struct wide { long a, b, c; };
NOINLINE double many(int a, long b, short c, char d, long e, long f, long g, long h, double p, double q, double r, double s,
	double t, float u, double v, double w, double x, struct wide y, long double z)
{
	return a + 2 * b + 3 * c + 5 * d + 7 * e + 11 * f + 13 * g + 17 * h + 19 * p + 23 * q + 29 * r + 31 * s + 37 * t + 41 * u +
		43 * v + 47 * w + 53 * x + 59 * y.a + 61 * y.b + 67 * y.c + 71 * (double)z;
}
PLAIN long check_arguments(void)
{
	struct wide y = { 18, 19, 20 };
	/* The sum of n times the n-th prime, with 1 for the first. */
	double sum = 1 + 2 * 2 + 3 * 3 + 5 * 4 + 7 * 5 + 11 * 6 + 13 * 7 + 17 * 8 + 19 * 9 + 23 * 10 + 29 * 11 + 31 * 12 + 37 * 13 +
		41 * 14 + 43 * 15 + 47 * 16 + 53 * 17 + 59 * 18 + 61 * 19 + 67 * 20 + 71 * 21;
	DEMAND(many(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, y, 21) == sum);
	return 0;
}

NOINLINE double sum(const char *kinds, ...)
{
	double all = 0;
	va_list list;
	va_start(list, kinds);
	for (; *kinds; kinds++)
		all += *kinds == 'i' ? va_arg(list, int) : *kinds == 'd' ? va_arg(list, double) : (double)va_arg(list, long double);
	va_end(list);
	return all;
}
/* The value of al. */
long vectors(void);
__asm__(".pushsection .text\n.globl vectors\n.type vectors, @function\n"
	"vectors:\n0: nop; nop; nop; nop; nop\n	movzbl %al, %eax\n	ret\n.size vectors, . - vectors\n.popsection\n"
	".pushsection __patchable_function_entries, \"awo\", @progbits, .text\n.balign 8\n.quad 0b\n.popsection\n");
PLAIN long check_varargs(void)
{
	DEMAND(sum("iiiiiiiddddddddddiil", 1, 2, 3, 4, 5, 6, 7, .5, .5, .5, .5, .5, .5, .5, .5, .5, .5, 8, 9, 10.25L) == 60.25);
	DEMAND(sum("") == 0);
	for (long n = 0; n <= 8; n++) {
		long got = n | 0x7f00;
		__asm__ volatile("call vectors" : "+a"(got) : : "memory", "cc", "r11");
		DEMAND(got == n);
	}
	return 0;
}

struct pair { long a, b; };
struct doubles { double a, b; };
struct mixed { double a; long b; };
NOINLINE struct pair pair_of(long a) { return (struct pair){ a, ~a }; }
NOINLINE struct doubles doubles_of(double a) { return (struct doubles){ a, -a }; }
NOINLINE struct mixed mixed_of(long a) { return (struct mixed){ a, a + 1 }; }
NOINLINE struct wide wide_of(long a) { return (struct wide){ a, a + 1, a + 2 }; }
NOINLINE long double long_double_of(long double a) { return a / 3; }
NOINLINE long double _Complex complex_of(long double a) { return a + 2 * a * I; }
NOINLINE __int128 int128_of(__int128 a) { return a * 3; }
PLAIN long check_returns(void)
{
	struct pair pair = pair_of(0x123456789abcdef);
	DEMAND(pair.a == 0x123456789abcdef && pair.b == ~0x123456789abcdef);
	struct doubles doubles = doubles_of(1.25);
	DEMAND(doubles.a == 1.25 && doubles.b == -1.25);
	struct mixed mixed = mixed_of(41);
	DEMAND(mixed.a == 41 && mixed.b == 42);
	struct wide wide = wide_of(7);
	DEMAND(wide.a == 7 && wide.b == 8 && wide.c == 9);
	DEMAND(long_double_of(1) == 1.0L / 3);
	long double _Complex c = complex_of(0.1L);
	DEMAND(creall(c) == 0.1L && cimagl(c) == 0.2L);
	__int128 big = (__int128)1 << 100;
	DEMAND(int128_of(big) == big * 3);
	return 0;
}

#ifndef __clang__
/* The nested function finds the outer function's variables by r10, and has a site if the outer function has one. */
NOINLINE long check_static_chain(void)
{
	long kept = 40;
	NOINLINE long inside(long a) { kept += a; return kept; }
	DEMAND(inside(1) == 41 && inside(1) == 42 && kept == 42);
	return 0;
}
#endif

/* Calls a function with a stack pointer that is neither a multiple of 16 nor of 8. */
NOINLINE long aligned_or_not(long a) { return a + 1; }
long call_shifted(long a, long shift);
__asm__(".pushsection .text\n.type call_shifted, @function\ncall_shifted:\n.cfi_startproc\n"
	"	push %rbp\n.cfi_def_cfa_offset 16\n.cfi_offset rbp, -16\n	mov %rsp, %rbp\n.cfi_def_cfa_register rbp\n"
	"	sub %rsi, %rsp\n	call aligned_or_not\n	leave\n.cfi_def_cfa rsp, 8\n	ret\n.cfi_endproc\n.popsection\n");
PLAIN long check_misaligned(void)
{
	for (long shift = 0; shift < 64; shift++)
		DEMAND(call_shifted(shift, shift) == shift + 1);
	return 0;
}

/* Sites that lie across two cache lines and across two pages. */
#define ACROSS(name, align, skip) \
	__asm__(".pushsection .text." #name ", \"ax\", @progbits\n.balign " #align "\n.skip " #skip ", 0xcc\n.globl " #name "\n" \
		".type " #name ", @function\n" #name ":\n0: nop; nop; nop; nop; nop\n	lea 1(%rdi), %rax\n	ret\n" \
		".size " #name ", . - " #name "\n.popsection\n" \
		".pushsection __patchable_function_entries, \"awo\", @progbits, .text." #name "\n.balign 8\n.quad 0b\n.popsection\n");
ACROSS(across_line_1, 64, 60)
ACROSS(across_line_4, 64, 63)
ACROSS(across_page_1, 4096, 4092)
ACROSS(across_page_2, 4096, 4093)
ACROSS(across_page_4, 4096, 4095)
long across_line_1(long), across_line_4(long), across_page_1(long), across_page_2(long), across_page_4(long);
PLAIN long check_across(void)
{
	DEMAND(across_line_1(1) == 2 && across_line_4(1) == 2);
	DEMAND(across_page_1(1) == 2 && across_page_2(1) == 2 && across_page_4(1) == 2);
	return 0;
}
