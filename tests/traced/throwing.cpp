/* Exceptions through traced functions, into a traced function and into one that is not traced. */
#define NOINLINE __attribute__((noinline, noclone, noipa))
#define PLAIN __attribute__((noinline, noclone, patchable_function_entry(0)))

static long cleaned;
extern "C" NOINLINE long cleans(long a) { return ++cleaned + a - a; }
struct Guard { ~Guard() { cleans(1); } };

extern "C" {
NOINLINE void third(long a) { if (a) throw a; }
NOINLINE void second(long a) { Guard guard; third(a); }
NOINLINE void first(long a) { second(a); __asm__ volatile(""); }
NOINLINE long traced_catcher(long a)
{
	try { first(a); } catch (long caught) { return caught + 1; }
	return 0;
}
PLAIN long plain_catcher(long a)
{
	try { first(a); } catch (long caught) { return caught + 2; }
	return 0;
}
/* Catches in the middle, and throws once more. */
NOINLINE void again(long a)
{
	try { first(a); } catch (long caught) { throw caught + 10; }
}
PLAIN long check_exceptions(void)
{
	cleaned = 0;
	for (long i = 1; i <= 100; i++) {
		if (traced_catcher(i) != i + 1 || plain_catcher(i) != i + 2)
			return __LINE__;
		try { again(i); return __LINE__; }
		catch (long caught) { if (caught != i + 10) return __LINE__; }
		if (traced_catcher(0) != 0)
			return __LINE__;
	}
	return cleaned == 400 ? 0 : __LINE__;
}
/* Calls a function that may panic. */
NOINLINE long calls_back(long (*back)(long), long a) { long b = back(a); __asm__ volatile("" : "+r"(b)); return b; }
NOINLINE long calls_back_below(long (*back)(long), long a) { long b = calls_back(back, a); __asm__ volatile("" : "+r"(b)); return b; }
}
