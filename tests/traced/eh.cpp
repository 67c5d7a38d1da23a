/*
 * Exceptions in many ways, in the manner of compilers' own tests. Each scene returns 0, or the line of the first error. Every
 * function without PLAIN has a site. `thrown` counts exceptions, `caught` those that arrive at the expected handler.
 */
#include <exception>
#include <functional>
#include <new>
#include <stdexcept>
#include <string>
#include <alloca.h>
#include <cstdarg>
#include <cstring>
#include <pthread.h>
#include <ucontext.h>

#define NOINLINE __attribute__((noinline, noclone, noipa))
#define PLAIN __attribute__((noinline, noclone, patchable_function_entry(0)))
#define DEMAND(it) do { if (!(it)) return __LINE__; } while (0)
#define KEEP(x) __asm__ volatile("" : "+r"(x) : : "memory")

static long thrown, caught;
template <class T> NOINLINE void raise(T value) { ++thrown; throw value; }
template <class T> NOINLINE T arrived(T value) { ++caught; return value; }

/* The actions, in order. */
static char done[64];
static unsigned at;
NOINLINE void note(char what) { if (at < sizeof done - 1) done[at++] = what; }
static bool was(const char *what) { done[at] = 0; bool same = !strcmp(done, what); at = 0; return same; }
struct Noted { char what; explicit Noted(char what) : what(what) { note(what); } ~Noted() { note(what - 'a' + 'A'); } };

/* Cleanups run from the inside outward. */
NOINLINE void order_inner(long a) { Noted d('d'); { Noted e('e'); } if (a) raise(a); note('!'); }
NOINLINE void order_middle(long a) { Noted b('b'); Noted c('c'); order_inner(a); note('!'); }
NOINLINE void order_outer(long a) { Noted x('a'); order_middle(a); note('!'); }
static long order()
{
	try { order_outer(7); return __LINE__; } catch (long got) { DEMAND(arrived(got) == 7); }
	DEMAND(was("abcdeEDCBA"));
	return 0;
}

/* Rethrown at each level, with and without cleanups, in handlers within handlers. */
NOINLINE void rethrow_0(long a) { raise(a); }
NOINLINE void rethrow_1(long a) { try { rethrow_0(a); } catch (long) { note('1'); throw; } }
NOINLINE void rethrow_2(long a) { Noted n('n'); try { rethrow_1(a); } catch (...) { note('2'); throw; } }
NOINLINE void rethrow_3(long a)
{
	try { rethrow_2(a); }
	catch (...) {
		try { throw; } catch (long &got) { got++; note('3'); }
		throw;
	}
}
NOINLINE void rethrows_what_is_handled() { throw; }
NOINLINE void rethrow_4(long a) { try { rethrow_3(a); } catch (...) { rethrows_what_is_handled(); } }
static long rethrow()
{
	try { rethrow_4(1); return __LINE__; } catch (long got) { DEMAND(arrived(got) == 2); }
	DEMAND(was("n12N3"));
	return 0;
}

/* Destructors that throw and catch while another exception passes. */
NOINLINE void in_destructor(long a) { raise((int)a); }
struct Catches { ~Catches() { try { in_destructor(5); note('!'); } catch (int got) { if (arrived(got) == 5) note('c'); } } };
NOINLINE void through_catches(long a) { Catches one; Noted n('n'); raise(a); }
NOINLINE void through_more(long a) { Catches two; through_catches(a); }
static long destructors()
{
	try { through_more(3); return __LINE__; } catch (long got) { DEMAND(arrived(got) == 3 && !std::uncaught_exception()); }
	DEMAND(was("nNcc"));
	return 0;
}

/* Function-try-blocks, of functions and of constructors; the latter rethrow by themselves. */
NOINLINE long block(long a) try { raise(a); return 0; } catch (long got) { return arrived(got) + 1; }
struct Part { long a; NOINLINE explicit Part(long a) : a(a) { if (a == 2) raise(a); note('p'); } ~Part() { note('P'); } };
struct Whole {
	Part one, two;
	NOINLINE explicit Whole(long a) try : one(1), two(a) { note('w'); } catch (long got) { note('t'); }
};
struct Heir : Part, Noted { NOINLINE explicit Heir(long a) try : Part(1), Noted('h') { raise(a); } catch (...) { note('f'); throw; } };
static long blocks()
{
	DEMAND(block(4) == 5);
	try { Whole whole(2); return __LINE__; } catch (long got) { DEMAND(arrived(got) == 2); }
	DEMAND(was("pPt"));
	try { Heir heir(9); return __LINE__; } catch (long got) { DEMAND(arrived(got) == 9); }
	DEMAND(was("phHPf"));
	{ Whole whole(3); }
	DEMAND(was("ppwPP"));
	return 0;
}

/* Another exception is thrown in a handler; nested exceptions; pointers to exceptions. */
NOINLINE void replaces(long a) { try { raise(a); } catch (long got) { ++caught; raise(std::string(static_cast<size_t>(got), 'x')); } }
NOINLINE void nests(long a) { try { raise(a); } catch (long) { ++caught; ++thrown; std::throw_with_nested(std::runtime_error("outer")); } }
NOINLINE std::exception_ptr keeps(long a) { try { raise(a); } catch (...) { ++caught; return std::current_exception(); } return nullptr; }
NOINLINE void throws_kept(std::exception_ptr kept) { ++thrown; std::rethrow_exception(kept); }
static long nested()
{
	try { replaces(40); return __LINE__; } catch (const std::string &got) { ++caught; DEMAND(got.size() == 40); }
	try { nests(6); return __LINE__; }
	catch (const std::exception &outer) {
		++caught;
		DEMAND(!strcmp(outer.what(), "outer"));
		++thrown;
		try { std::rethrow_if_nested(outer); return __LINE__; } catch (long got) { DEMAND(arrived(got) == 6); }
	}
	std::exception_ptr kept = keeps(8);
	for (int i = 0; i < 3; i++) {
		try { throws_kept(kept); return __LINE__; } catch (long got) { DEMAND(arrived(got) == 8); }
	}
	return 0;
}

/* By value, reference and pointer, as a base, and past handlers of other types. */
struct Base { long a; explicit Base(long a) : a(a) {} Base(const Base &from) : a(from.a) { } virtual ~Base() {} virtual long is() const { return 1; } };
struct Derived : Base { explicit Derived(long a) : Base(a) {} long is() const override { return 2; } };
struct Other { long a; };
struct Both : Other, Derived { explicit Both(long a) : Other{a}, Derived(a) {} };
NOINLINE void passes(long a)
{
	try { if (a & 1) raise(Derived(a)); else raise(Both(a)); }
	catch (int) { note('!'); } catch (const char *) { note('!'); } catch (Part &) { note('!'); }
}
static long types()
{
	try { passes(1); return __LINE__; } catch (Base &got) { ++caught; DEMAND(got.is() == 2 && got.a == 1); }
	try { passes(3); return __LINE__; } catch (Base got) { ++caught; DEMAND(got.is() == 1 && got.a == 3); }
	try { passes(4); return __LINE__; } catch (const Derived &got) { ++caught; DEMAND(got.is() == 2 && got.a == 4); }
	static Both both(5);
	try { raise(&both); return __LINE__; } catch (Base *got) { ++caught; DEMAND(got->is() == 2 && got->a == 5); }
	DEMAND(was(""));
	return 0;
}

/* An exception that a specification does not allow becomes an exception that the specification allows. */
#pragma GCC diagnostic ignored "-Wdeprecated"
NOINLINE void specified(long a) throw(int) { Noted n('n'); raise(a); }
NOINLINE void specified_outer(long a) throw(int, long) { specified(a); }
PLAIN void unexpected() { ++caught; ++thrown; throw 11; }
static long specifications()
{
	std::unexpected_handler before = std::set_unexpected(unexpected);
	try { specified_outer(1); return __LINE__; } catch (int got) { DEMAND(arrived(got) == 11); }
	std::set_unexpected(before);
	DEMAND(was("nN"));
	return 0;
}

/* Tail calls: chains, loops, by pointer, of members, behind a handler, with arguments on the stack. */
NOINLINE void tail_4(long a) { if (a) raise(a); KEEP(a); }
NOINLINE void tail_3(long a) { tail_4(a + 1); }
NOINLINE void tail_2(long a) { tail_3(a + 1); }
NOINLINE void tail_1(long a) { tail_2(a + 1); }
NOINLINE void tail_loop(long n, long a) { if (n == 0) return tail_1(a); tail_loop(n - 1, a); }
NOINLINE void ping(long n);
NOINLINE void pong(long n) { if (n == 0) return tail_4(1); ping(n - 1); }
NOINLINE void ping(long n) { pong(n); }
static void (*volatile pointer)(long) = tail_2;
NOINLINE void by_pointer(long a) { pointer(a); }
NOINLINE void guarded(long a) { Noted n('n'); by_pointer(a); }
NOINLINE void behind_a_handler(long a) { try { tail_1(a); } catch (long got) { ++caught; a = got; } tail_2(a); }
NOINLINE long many(long a, long b, long c, long d, long e, long f, long g, long h)
{
	if (h == 8) raise(a + b + c + d + e + f + g + h);
	return a;
}
NOINLINE long swapped(long a, long b, long c, long d, long e, long f, long g, long h) { return many(b, a, d, c, f, e, g, h); }
struct Object {
	long a;
	NOINLINE void last(long b) { if (b) raise(a + b); KEEP(b); }
	NOINLINE void first(long b) { last(b + 1); }
};
static long tail_calls()
{
	try { tail_1(1); return __LINE__; } catch (long got) { DEMAND(arrived(got) == 4); }
	try { tail_loop(20, 1); return __LINE__; } catch (long got) { DEMAND(arrived(got) == 4); }
	try { ping(9); return __LINE__; } catch (long got) { DEMAND(arrived(got) == 1); }
	try { guarded(2); return __LINE__; } catch (long got) { DEMAND(arrived(got) == 4); }
	DEMAND(was("nN"));
	try { behind_a_handler(3); return __LINE__; } catch (long got) { DEMAND(arrived(got) == 8); }
	try { swapped(1, 2, 3, 4, 5, 6, 7, 8); return __LINE__; } catch (long got) { DEMAND(arrived(got) == 36); }
	Object object = { 40 };
	try { object.first(1); return __LINE__; } catch (long got) { DEMAND(arrived(got) == 42); }
	/* And no throw below these: all of them return. */
	tail_4(0);
	pointer = tail_4;
	guarded(0);
	pointer = tail_2;
	DEMAND(was("nN"));
	return 0;
}

/* Virtual functions, by thunks that adjust, that look up an offset, and that return another type. */
struct Left { long l = 1; virtual ~Left() {} virtual void left(long a) = 0; virtual Left *self() { return this; } };
struct Right { long r = 2; virtual ~Right() {} virtual void right(long a) = 0; virtual Right *itself() = 0; };
struct Root { long v = 3; virtual ~Root() {} virtual void root(long a) = 0; };
struct Multiple : Left, Right, virtual Root {
	NOINLINE void left(long a) override { raise(a + l); }
	NOINLINE void right(long a) override { Noted n('r'); raise(a + r); }
	NOINLINE void root(long a) override { right(a + v); }
	NOINLINE Multiple *self() override { return this; }
	NOINLINE Multiple *itself() override { if (r == 5) raise(r); return this; }
};
NOINLINE void by_left(Left *it, long a) { it->left(a); }
NOINLINE void by_right(Right *it, long a) { it->right(a); }
NOINLINE void by_root(Root *it, long a) { it->root(a); }
NOINLINE Right *by_itself(Right *it) { return it->itself(); }
static long thunks()
{
	Multiple it;
	try { by_left(&it, 10); return __LINE__; } catch (long got) { DEMAND(arrived(got) == 11); }
	try { by_right(&it, 10); return __LINE__; } catch (long got) { DEMAND(arrived(got) == 12); }
	try { by_root(&it, 10); return __LINE__; } catch (long got) { DEMAND(arrived(got) == 15); }
	DEMAND(was("rRrR") && by_itself(&it) == &it);
	it.r = 5;
	try { by_itself(&it); return __LINE__; } catch (long got) { DEMAND(arrived(got) == 5); }
	return 0;
}

/* Constructors: of arrays, of new objects, of static objects. */
struct Counted {
	static long there;
	NOINLINE Counted() { if (there == 3) raise(there); ++there; }
	NOINLINE ~Counted() { --there; }
};
long Counted::there;
static long frees;
struct Allocated {
	NOINLINE explicit Allocated(long a) { raise(a); }
	static void *operator new(size_t size) { return ::operator new(size); }
	NOINLINE static void operator delete(void *at) { ++frees; ::operator delete(at); }
};
static long first_time;
struct Late { NOINLINE Late() { if (first_time++ % 2 == 0) raise(first_time); } long is() { return 1; } };
template <int> NOINLINE long late() { static Late late; return late.is(); }
NOINLINE long array(long n) { Counted some[5]; return n; }
static long constructors()
{
	try { array(1); return __LINE__; } catch (long got) { DEMAND(arrived(got) == 3 && Counted::there == 0); }
	try { delete[] new Counted[7]; return __LINE__; } catch (long got) { DEMAND(arrived(got) == 3 && Counted::there == 0); }
	long before = frees;
	try { delete new Allocated(6); return __LINE__; } catch (long got) { DEMAND(arrived(got) == 6 && frees == before + 1); }
	return 0;
}
static long once()
{
	first_time = 0;
	try { late<1>(); return __LINE__; } catch (long got) { DEMAND(arrived(got) == 1); }
	DEMAND(late<1>() == 1 && late<1>() == 1);
	return 0;
}

/* Frames of unusual shapes: of unknown size, with larger alignment, with any number of arguments; and callbacks of libraries. */
NOINLINE void sized(long n) { char *room = static_cast<char *>(alloca(static_cast<size_t>(n))); memset(room, 1, static_cast<size_t>(n)); raise(n + room[n - 1]); }
NOINLINE void aligned(long a) { alignas(64) char room[64]; memset(room, 0, sizeof room); KEEP(a); Noted n('g'); sized(a + room[0]); }
NOINLINE void varied(int count, ...)
{
	va_list list;
	va_start(list, count);
	long sum = 0;
	for (int i = 0; i < count; i++) sum += va_arg(list, long);
	va_end(list);
	double half = 0.5;
	raise(sum + static_cast<long>(half * 2));
}
NOINLINE void called_back(const std::function<void(long)> &call, long a) { Noted n('o'); call(a); }
static long shapes()
{
	for (long n = 100; n < 108; n++) {
		try { aligned(n); return __LINE__; } catch (long got) { DEMAND(arrived(got) == n + 1); }
		DEMAND(was("gG"));
	}
	try { varied(9, 1L, 2L, 3L, 4L, 5L, 6L, 7L, 8L, 9L); return __LINE__; } catch (long got) { DEMAND(arrived(got) == 46); }
	try { called_back([](long a) { tail_1(a); }, 5); return __LINE__; } catch (long got) { DEMAND(arrived(got) == 8); }
	DEMAND(was("oO"));
	return 0;
}

/* From a deep frame; out of loops; and many times from the same frame. */
NOINLINE long deep(long n) { Noted n1('n'); if (n == 0) raise(n); long got = deep(n - 1); KEEP(got); return got; }
NOINLINE long loops(long rounds)
{
	long sum = 0;
	for (long i = 0; i < rounds; i++) {
		try { if (i % 3 == 0) continue; tail_1(i); }
		catch (long got) { sum += arrived(got); if (i % 5 == 0) goto next; continue; }
next:
		note('.');
	}
	return sum;
}
static long depths()
{
	try { deep(20); return __LINE__; } catch (long got) { DEMAND(arrived(got) == 0); }
	DEMAND(was("nnnnnnnnnnnnnnnnnnnnnNNNNNNNNNNNNNNNNNNNNN"));
	DEMAND(loops(10) == 4 + 5 + 7 + 8 + 10 + 11 && was("."));
	return 0;
}

/* Threads that end: by force, which no handler stops, through cleanups and handlers that rethrow. */
NOINLINE void ends(long a) { Noted n('e'); if (a) pthread_exit(reinterpret_cast<void *>(a)); KEEP(a); }
NOINLINE void ends_tail(long a) { ends(a); }
NOINLINE void ends_below(long a) { Noted n('b'); try { ends_tail(a); } catch (long) { note('!'); } catch (...) { note('x'); throw; } }
NOINLINE void *thread(void *a)
{
	try { tail_1(1); } catch (long got) { if (arrived(got) == 4) note('t'); }
	ends_below(reinterpret_cast<long>(a));
	return nullptr;
}
static long forced()
{
	pthread_t it;
	void *result;
	DEMAND(pthread_create(&it, nullptr, thread, reinterpret_cast<void *>(7L)) == 0);
	DEMAND(pthread_join(it, &result) == 0 && result == reinterpret_cast<void *>(7L));
	DEMAND(was("tbeExB"));
	return 0;
}

/* On a coroutine with a stack within this thread's own: thrown and caught there, before and after a switch. */
static ucontext_t home, coroutine;
static long sum;
NOINLINE void yields() { swapcontext(&coroutine, &home); }
NOINLINE void throws_and_yields(long a) { Noted n('y'); yields(); tail_1(a); }
NOINLINE void runs()
{
	for (long a = 1; a < 4; a++)
		try { throws_and_yields(a); } catch (long got) { sum += arrived(got); }
}
NOINLINE void resumes() { swapcontext(&home, &coroutine); }
NOINLINE void resumes_and_throws(long a) { resumes(); raise(a); }
static long coroutines()
{
	char stack[65536];
	sum = 0;
	getcontext(&coroutine);
	coroutine.uc_link = &home;
	coroutine.uc_stack.ss_sp = stack;
	coroutine.uc_stack.ss_size = sizeof stack;
	makecontext(&coroutine, runs, 0);
	for (long a = 0; a < 4; a++)
		try { resumes_and_throws(a); return __LINE__; } catch (long got) { DEMAND(arrived(got) == a); }
	DEMAND(sum == 4 + 5 + 6 && was("yYyYyY"));
	return 0;
}

extern "C" {
PLAIN long check_throws(long least)
{
	static bool is_done;
	thrown = caught = 0;
	long wrong = is_done ? 0 : once();
	is_done = true;
	while (!wrong && thrown < least) {
		long (*const scenes[])() = { order, rethrow, destructors, blocks, nested, types, specifications, tail_calls, thunks,
					     constructors, shapes, depths };
		for (auto scene : scenes)
			if (!wrong)
				wrong = scene();
		if (!wrong && thrown % 16 == 0)
			wrong = forced();
	}
	return wrong ? wrong : thrown == caught ? 0 : -1;
}
PLAIN long check_coroutine_throws(long rounds)
{
	thrown = caught = 0;
	long wrong = 0;
	for (long i = 0; i < rounds && !wrong; i++)
		wrong = coroutines();
	return wrong ? wrong : thrown == caught ? 0 : -1;
}
PLAIN long throws_made(void) { return thrown; }
}
