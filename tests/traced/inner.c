/*
 * Coroutines with stacks within the stack of their thread. Every function without PLAIN has a site. `made` counts the calls of
 * these functions, `inside` the calls on a coroutine's stack.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <setjmp.h>
#include <string.h>
#include <ucontext.h>

#define NOINLINE __attribute__((noinline, noclone, noipa))
#define PLAIN __attribute__((noinline, noclone, patchable_function_entry(0)))
#define DEMAND(it) do { if (!(it)) return __LINE__; } while (0)
#define KEEP(x) __asm__ volatile("" : "+r"(x) : : "memory")

static long made, inside;
static ucontext_t home, coroutines[2];
static long sum;

NOINLINE long work(long n) { made++; return n + 1; }
NOINLINE long deeper(long n) { made++; long m = n ? deeper(n - 1) : work(n); KEEP(m); return m; }
NOINLINE void suspends(long self) { made++; inside++; swapcontext(&coroutines[self], &home); __asm__ volatile(""); }
NOINLINE void body(int self)
{
	made++; inside++;
	for (;;) {
		sum += work(self); inside++;
		sum += deeper(3); inside += 5;
		suspends(self);
		sum += work(self); inside++;
	}
}
NOINLINE void resumes(long which) { made++; swapcontext(&home, &coroutines[which]); __asm__ volatile(""); }

PLAIN void make(long self, void *stack, size_t size)
{
	getcontext(&coroutines[self]);
	coroutines[self].uc_link = &home;
	coroutines[self].uc_stack.ss_sp = stack;
	coroutines[self].uc_stack.ss_size = size;
	makecontext(&coroutines[self], (void (*)(void))body, 1, (int)self);
}

/* One coroutine, resumed by a traced function. */
PLAIN long check_one(long rounds)
{
	char stack[16384];
	made = inside = 0;
	make(0, stack, sizeof stack);
	for (long i = 0; i < rounds; i++) {
		resumes(0);
		DEMAND(deeper(2) == 1);
	}
	return 0;
}

/* Two coroutines in turn, each above the other once; resumed from different depths. */
NOINLINE void resumes_below(long which, long n) { made++; if (n) resumes_below(which, n - 1); else resumes(which); __asm__ volatile(""); }
PLAIN long check_two(long rounds)
{
	char stacks[2][16384];
	made = inside = 0;
	for (int order = 0; order < 2; order++) {
		for (long i = 0; i < 2; i++)
			make(i, stacks[i ^ order], sizeof stacks[0]);
		for (long i = 0; i < rounds; i++)
			resumes_below((i * 7 + i / 3) % 2, i % 5);
	}
	return 0;
}

/* Resumed by a function without a site, so that no recorded function is below the switch. */
PLAIN void resumes_plainly(long which) { swapcontext(&home, &coroutines[which]); }
NOINLINE long switches(long rounds)
{
	char stacks[2][16384];
	made++;
	for (int order = 0; order < 2; order++) {
		for (long i = 0; i < 2; i++)
			make(i, stacks[i ^ order], sizeof stacks[0]);
		for (long i = 0; i < rounds; i++) {
			resumes_plainly((i * 5 + i / 4) % 2);
			if (deeper(i % 4) != 1)
				return __LINE__;
		}
	}
	return 0;
}
PLAIN long check_plainly(long rounds) { made = inside = 0; long wrong = switches(rounds); return wrong; }

/* Abandoned in the middle, many times, on the same stack and on others. */
NOINLINE long leaves_it(long n)
{
	char stack[16384];
	made++;
	make(0, stack, sizeof stack);
	resumes(0);
	return n + work(n);
}
PLAIN long check_left(long rounds)
{
	made = inside = 0;
	for (long i = 0; i < rounds; i++)
		DEMAND(leaves_it(i) == 2 * i + 1);
	return 0;
}

/* Jumps out of functions, on the coroutine and on the thread's stack, between switches. */
static jmp_buf out[2];
NOINLINE void jumps(long which, long n) { made++; if (n == 0) longjmp(out[which], 1); jumps(which, n - 1); __asm__ volatile(""); }
NOINLINE void jumping_body(int self)
{
	made++; inside++;
	for (;;) {
		if (setjmp(out[1]) == 0) { inside += 4; jumps(1, 3); }
		sum += work(1); inside++;
		suspends(self);
	}
}
PLAIN long check_jumps(long rounds)
{
	char stack[16384];
	made = inside = 0;
	make(0, stack, sizeof stack);
	makecontext(&coroutines[0], (void (*)(void))jumping_body, 1, 0);
	for (long i = 0; i < rounds; i++) {
		resumes(0);
		if (setjmp(out[0]) == 0) jumps(0, 5);
		DEMAND(work(i) == i + 1);
	}
	return 0;
}

/* Switched by code without rows: no walk can find the end of such a stack. */
void switch_by_hand(void **from, void *to);
__asm__(".pushsection .text\n.globl switch_by_hand\n.type switch_by_hand, @function\nswitch_by_hand:\n"
	"	push %rbp\n	push %rbx\n	push %r12\n	push %r13\n	push %r14\n	push %r15\n	mov %rsp, (%rdi)\n	mov %rsi, %rsp\n"
	"	pop %r15\n	pop %r14\n	pop %r13\n	pop %r12\n	pop %rbx\n	pop %rbp\n	ret\n.size switch_by_hand, . - switch_by_hand\n.popsection\n");
static void *thread_stack, *hand_stack;
NOINLINE void back_by_hand(void) { made++; inside++; switch_by_hand(&hand_stack, thread_stack); __asm__ volatile(""); }
NOINLINE void hand_body(void) { made++; inside++; for (;;) { sum += work(1); inside++; back_by_hand(); } }
NOINLINE void on_by_hand(void) { made++; switch_by_hand(&thread_stack, hand_stack); __asm__ volatile(""); }
PLAIN long check_by_hand(long rounds)
{
	char stack[8192] __attribute__((aligned(16)));
	void **top = (void **)(stack + sizeof stack);
	made = inside = 0;
	*--top = 0;
	*--top = (void *)hand_body;
	for (int i = 0; i < 6; i++) *--top = 0;
	hand_stack = top;
	for (long i = 0; i < rounds; i++) { on_by_hand(); DEMAND(work(i) == i + 1); }
	return 0;
}

/* The first coroutine, on another thread than the process's first. */
PLAIN void *other(void *rounds) { long wrong = check_one((long)rounds); return (void *)(wrong ? wrong : check_two((long)rounds)); }
PLAIN long check_thread(long rounds)
{
	pthread_t thread;
	void *wrong;
	DEMAND(pthread_create(&thread, NULL, other, (void *)rounds) == 0);
	DEMAND(pthread_join(thread, &wrong) == 0);
	return (long)wrong;
}
PLAIN long calls_made(void) { return made; }
PLAIN long calls_inside(void) { return inside; }
