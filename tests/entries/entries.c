/*
 * Functions of the test program itself, each with a site at its entry that can be redirected. Compiled twice (build.rs):
 * as `patchable` with five NOPs of one byte there, as `counted` with a call of __fentry__. KIND is the name and SECTION
 * the table of sites that the compiler writes.
 */

#define PASTE(a, b) a##b
#define NAME(a, b) PASTE(a, b)
#define START NAME(__start_, SECTION)
#define STOP NAME(__stop_, SECTION)

#define FUNCTION(n) \
	static __attribute__((noinline, noclone)) int add_##n(int x) \
	{ \
		return x + n; \
	}

FUNCTION(1)
FUNCTION(2)
FUNCTION(3)
FUNCTION(4)
FUNCTION(5)
FUNCTION(6)
FUNCTION(7)
FUNCTION(8)

extern int (*const NAME(KIND, _functions)[8])(int);
int (*const NAME(KIND, _functions)[8])(int) = { add_1, add_2, add_3, add_4, add_5, add_6, add_7, add_8 };

/* The bounds of the table in the linked program; null if the compiler has made no table. */
extern const unsigned long START[] __attribute__((weak, visibility("hidden")));
extern const unsigned long STOP[] __attribute__((weak, visibility("hidden")));

extern const unsigned long *const NAME(KIND, _sites)[2];
const unsigned long *const NAME(KIND, _sites)[2] = { START, STOP };
