/*
 * Functions that end otherwise than by their return: by longjmp, by the end of their thread; and stacks that change in
 * the middle. Every function without PLAIN has a site.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline, noclone, noipa))
#define PLAIN __attribute__((noinline, noclone, no_instrument_function, patchable_function_entry(0)))
#define DEMAND(it) do { if (!(it)) return __LINE__; } while (0)
#define KEEP(x) __asm__ volatile("" : "+r"(x) : : "memory")

NOINLINE long leaf(long a) { return a + 1; }

/* Five functions deep, and out. */
static jmp_buf out;
NOINLINE long deep(long n)
{
	if (n == 1)
		longjmp(out, 1);
	long m = deep(n - 1);
	KEEP(m);
	return m;
}
PLAIN long jump_once(void)
{
	if (setjmp(out) == 0)
		deep(5);
	return leaf(1);
}
PLAIN long check_longjmp(void)
{
	for (int i = 0; i < 10000; i++)
		DEMAND(jump_once() == 2);
	return 0;
}
/* Returns at once, with the frames of all skipped functions above. */
NOINLINE long catcher(long a)
{
	if (setjmp(out) == 0)
		deep(5);
	return a + 1;
}
PLAIN long check_longjmp_into_traced(void)
{
	for (int i = 0; i < 10000; i++)
		DEMAND(catcher(i) == i + 1);
	return 0;
}
/* Jumps out from below a large frame, and then calls from above that frame. */
PLAIN long far_below(long n)
{
	char room[8192];
	memset(room, (int)n, sizeof room);
	__asm__ volatile("" : : "r"(room) : "memory");
	return deep(n) + room[0];
}
NOINLINE long shallow_catcher(long a)
{
	if (setjmp(out) == 0)
		far_below(5);
	return leaf(a);
}
PLAIN long check_longjmp_from_far_below(void)
{
	for (int i = 0; i < 10000; i++)
		DEMAND(shallow_catcher(i) == i + 1);
	return 0;
}

/* Saves the state of its caller: the six preserved registers, the stack pointer and the return address. */
long savectx(long *context);
__asm__(".pushsection .text\n.globl savectx\n.type savectx, @function\nsavectx:\n0: nop; nop; nop; nop; nop\n"
	"	mov %rbx, (%rdi)\n	mov %rbp, 8(%rdi)\n	mov %r12, 16(%rdi)\n	mov %r13, 24(%rdi)\n	mov %r14, 32(%rdi)\n"
	"	mov %r15, 40(%rdi)\n	lea 8(%rsp), %rax\n	mov %rax, 48(%rdi)\n	mov (%rsp), %rax\n	mov %rax, 56(%rdi)\n"
	"	xor %eax, %eax\n	ret\n.size savectx, . - savectx\n"
	".type goes_back, @function\ngoes_back:\n	mov (%rdi), %rbx\n	mov 8(%rdi), %rbp\n	mov 16(%rdi), %r12\n"
	"	mov 24(%rdi), %r13\n	mov 32(%rdi), %r14\n	mov 40(%rdi), %r15\n	mov 48(%rdi), %rsp\n	mov $1, %eax\n"
	"	jmp *56(%rdi)\n.size goes_back, . - goes_back\n.popsection\n"
	".pushsection __patchable_function_entries, \"awo\", @progbits, .text\n.balign 8\n.quad 0b\n.popsection\n");
void goes_back(long *context) __attribute__((noreturn));
NOINLINE long comes_back(long times)
{
	static long context[8], done;
	done = 0;
	savectx(context);
	done += leaf(0);
	if (done < times)
		goes_back(context);
	return done;
}
PLAIN long check_twice(void) { DEMAND(comes_back(3) == 3); return 0; }

/* The end of threads. */
static int ends[2];
NOINLINE long waits(int how)
{
	char byte;
	if (how == 0)
		return read(ends[0], &byte, 1);
	return pause();
}
NOINLINE long waits_below(int how) { long got = waits(how); KEEP(got); return got; }
NOINLINE void *start(void *how)
{
	waits_below((int)(long)how);
	return NULL;
}
NOINLINE void exits_below(long a) { if (a == 7) pthread_exit((void *)a); KEEP(a); }
NOINLINE void *start_and_exit(void *a)
{
	exits_below((long)a);
	return NULL;
}
NOINLINE void *start_and_return(void *a) { return (void *)leaf((long)a); }
PLAIN long check_cancel(void)
{
	DEMAND(pipe(ends) == 0);
	for (long i = 0; i < 50; i++) {
		pthread_t thread;
		void *result;
		DEMAND(pthread_create(&thread, NULL, start, (void *)(i % 2)) == 0);
		usleep(500);
		DEMAND(pthread_cancel(thread) == 0);
		DEMAND(pthread_join(thread, &result) == 0 && result == PTHREAD_CANCELED);
	}
	close(ends[0]);
	close(ends[1]);
	return 0;
}
PLAIN long check_exit(void)
{
	for (int i = 0; i < 50; i++) {
		pthread_t thread;
		void *result;
		DEMAND(pthread_create(&thread, NULL, start_and_exit, (void *)7) == 0);
		DEMAND(pthread_join(thread, &result) == 0 && result == (void *)7);
		DEMAND(pthread_create(&thread, NULL, start_and_return, (void *)8) == 0);
		DEMAND(pthread_join(thread, &result) == 0 && result == (void *)9);
	}
	return 0;
}

/* A destructor of a thread's data, which runs after the thread's recording is closed. */
static pthread_key_t key;
PLAIN void destroy(void *data) { leaf((long)data); }
PLAIN void *destroyed(void *data)
{
	pthread_setspecific(key, data);
	return (void *)leaf(1);
}
PLAIN long check_destructors(void)
{
	DEMAND(pthread_key_create(&key, destroy) == 0);
	for (int i = 0; i < 10; i++) {
		pthread_t thread;
		void *result;
		DEMAND(pthread_create(&thread, NULL, destroyed, (void *)5) == 0);
		DEMAND(pthread_join(thread, &result) == 0 && result == (void *)2);
	}
	DEMAND(pthread_key_delete(key) == 0);
	return 0;
}

/* Coroutines: each calls, and switches in the middle of a function. */
static ucontext_t home, contexts[3];
static long switched;
NOINLINE long yields(long self)
{
	switched++;
	swapcontext(&contexts[self], &home);
	return leaf(self);
}
NOINLINE void coroutine(int self)
{
	for (;;) {
		long got = yields(self);
		if (got != self + 1)
			abort();
	}
}
NOINLINE long resumes(long which)
{
	swapcontext(&home, &contexts[which]);
	return leaf(which);
}
PLAIN long check_coroutines(void)
{
	static char *stacks[3];
	switched = 0;
	for (long i = 0; i < 3; i++) {
		if (!stacks[i])
			stacks[i] = malloc(65536);
		getcontext(&contexts[i]);
		contexts[i].uc_stack.ss_sp = stacks[i];
		contexts[i].uc_stack.ss_size = 65536;
		contexts[i].uc_link = &home;
		makecontext(&contexts[i], (void (*)(void))coroutine, 1, (int)i);
	}
	for (long n = 0; n < 3000; n++)
		DEMAND(resumes(n % 3) == n % 3 + 1);
	DEMAND(switched == 3000);
	return 0;
}

/* Signals. */
static volatile long handled;
NOINLINE long in_handler(long a) { long b = leaf(a); KEEP(b); return b; }
PLAIN void handler(int signal)
{
	(void)signal;
	if (in_handler(41) == 42)
		__atomic_fetch_add(&handled, 1, __ATOMIC_RELAXED);
}
NOINLINE long middle(long a) { long b = leaf(a); KEEP(b); return leaf(b); }
struct interrupted { long calls, stop; int alternate; };
PLAIN void *called(void *data)
{
	struct interrupted *it = data;
	stack_t stack = { .ss_size = 65536 };
	if (it->alternate) {
		stack.ss_sp = malloc(stack.ss_size);
		sigaltstack(&stack, NULL);
	}
	while (!__atomic_load_n(&it->stop, __ATOMIC_RELAXED)) {
		if (middle(5) != 7)
			abort();
		it->calls++;
	}
	/* Each thread has handled the signals that it was sent. */
	sigset_t set, before;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	pthread_sigmask(SIG_BLOCK, &set, &before);
	stack.ss_flags = SS_DISABLE;
	sigaltstack(&stack, NULL);
	free(stack.ss_sp);
	return NULL;
}
/* The numbers of calls and of handlers. Signals are sent to two threads until 25,000 have been handled: of several signals that
 * wait for one thread, one is handled. */
static long made, ran;
PLAIN long signals(int alternate)
{
	struct interrupted its[2] = { { .alternate = alternate }, { .alternate = alternate } };
	struct sigaction action = { .sa_handler = handler, .sa_flags = alternate ? SA_ONSTACK : 0 };
	pthread_t threads[2];
	handled = 0;
	sigaction(SIGUSR1, &action, NULL);
	for (int i = 0; i < 2; i++)
		DEMAND(pthread_create(&threads[i], NULL, called, &its[i]) == 0);
	for (long i = 0; handled < 25000; i++) {
		long before = handled;
		DEMAND(pthread_kill(threads[i % 2], SIGUSR1) == 0);
		for (int spin = 0; handled == before && spin < 200; spin++)
			__asm__ volatile("pause");
	}
	for (int i = 0; i < 2; i++)
		__atomic_store_n(&its[i].stop, 1, __ATOMIC_RELAXED);
	for (int i = 0; i < 2; i++)
		DEMAND(pthread_join(threads[i], NULL) == 0);
	made = 3 * (its[0].calls + its[1].calls) + 2 * handled;
	ran = handled;
	return 0;
}
PLAIN long check_signals(void) { return signals(0); }
PLAIN long check_signals_elsewhere(void) { return signals(1); }
PLAIN long calls_made(void) { return made; }
PLAIN long handlers_run(void) { return ran; }

/* An alternate stack within the thread's own stack, above the interrupted function. */
PLAIN long raise_often(long n)
{
	for (long i = 0; i < n; i++) {
		raise(SIGUSR2);
		if (leaf(i) != i + 1)
			return -1;
	}
	return n;
}
NOINLINE long interrupted(long n) { long m = raise_often(n); KEEP(m); return m; }
NOINLINE long interrupted_above(long n) { long m = interrupted(n); KEEP(m); return m; }
PLAIN long check_own_alternate_stack(void)
{
	char room[65536];
	stack_t stack = { .ss_sp = room, .ss_size = sizeof room };
	struct sigaction action = { .sa_handler = handler, .sa_flags = SA_ONSTACK };
	handled = 0;
	sigaction(SIGUSR2, &action, NULL);
	sigaltstack(&stack, NULL);
	long done = interrupted_above(1000);
	stack.ss_flags = SS_DISABLE;
	sigaltstack(&stack, NULL);
	DEMAND(done == 1000 && handled == 1000);
	return 0;
}

/* The middle of a fork. */
NOINLINE long forks(long a)
{
	pid_t pid = fork();
	return pid == 0 ? -1 : pid + a - a;
}
NOINLINE long forks_below(long a) { long pid = forks(a); KEEP(pid); return leaf(pid) - 1; }
PLAIN long check_fork(void)
{
	long pid = forks_below(3);
	if (pid == -1)
		_exit(leaf(41));
	int status;
	DEMAND(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 42);
	return 0;
}

/* read(2) from within a watched function, in a thread that stops on request. */
static int line[2];
NOINLINE long reads(long want)
{
	char byte = 0;
	long got = read(line[0], &byte, 1);
	return got < 0 ? -errno : got + want;
}
PLAIN void *reader(void *data) { return (void *)reads((long)data); }
static pthread_t reading;
PLAIN void nothing(int signal) { (void)signal; }
PLAIN long begin_read(void)
{
	struct sigaction action = { .sa_handler = nothing };
	sigaction(SIGUSR1, &action, NULL);
	DEMAND(pipe(line) == 0 && pthread_create(&reading, NULL, reader, (void *)10) == 0);
	usleep(20000);
	return 0;
}
PLAIN long end_read(long by_signal)
{
	void *got;
	if (!by_signal && write(line[1], "x", 1) != 1)
		return -1;
	/* A signal before the call begins, or begins again, interrupts nothing: then a later signal does. */
	do {
		if (by_signal)
			pthread_kill(reading, SIGUSR1);
		usleep(by_signal ? 10000 : 0);
	} while (by_signal && pthread_tryjoin_np(reading, &got) != 0);
	if (!by_signal)
		pthread_join(reading, &got);
	close(line[0]);
	close(line[1]);
	return (long)got;
}
