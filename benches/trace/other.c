/* The program for other tracers: the function of the bench, called in the same way. Prints ns per call. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#ifdef XRAY
#define TRACED __attribute__((noinline, aligned(64), xray_always_instrument))
#define PLAIN __attribute__((aligned(64), xray_never_instrument))
int __xray_set_handler(void (*)(int, int));
PLAIN static void nothing(int function, int what) { (void)function; (void)what; }
#else
#define TRACED __attribute__((noinline, aligned(64)))
#define PLAIN __attribute__((aligned(64), no_instrument_function))
#endif

TRACED int traced(int a) { return a + 1; }

PLAIN static int run(int (*f)(int), long n)
{
	int a = 0;
	for (long i = 0; i < n; i++)
		a = f(a);
	return a;
}

PLAIN static double now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1e9 + time.tv_nsec;
}

PLAIN static int order(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

PLAIN int main(int argc, char **argv)
{
	enum { ROUNDS = 51 };
	static double times[ROUNDS];
	static int (*volatile called)(int) = traced;
	long n = argc > 1 ? atol(argv[1]) : 100;
#ifdef XRAY
	if (argc > 2)
		__xray_set_handler(nothing);
#else
	(void)argv;
#endif
	for (int round = 0; round < ROUNDS; round++) {
		double begun = now();
		if (run(called, n) != n)
			return 1;
		times[round] = (now() - begun) / n;
	}
	qsort(times, ROUNDS, sizeof *times, order);
	printf("%.2f\n", times[ROUNDS / 2]);
	return 0;
}
