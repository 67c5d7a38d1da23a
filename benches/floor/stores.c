#define _GNU_SOURCE
#include "stores.h"

#include <linux/membarrier.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { INT3 = 0xcc, SITES = 16, APART = 64, SIZE = (SITES + 1) * APART, RESTS = 64 };

static const unsigned char nop[5] = { 0x0f, 0x1f, 0x44, 0x00, 0x00 };
static const unsigned char jmp[5] = { 0xe9, 6, 0x00, 0x00, 0x00 };
/* mov $1,%eax; ret; mov $2,%eax; ret */
static const unsigned char rest[12] = { 0xb8, 1, 0, 0, 0, 0xc3, 0xb8, 2, 0, 0, 0, 0xc3 };

static unsigned char *text, *alias;
static size_t first;
/* Twice the number of completed flips, plus one while a flip is in progress. */
static uint64_t state;
static int stop;

struct stores_seen *stores_open(void)
{
	void *seen = mmap(NULL, sizeof(struct stores_seen), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	return seen == MAP_FAILED ? NULL : seen;
}

static int make_text(void)
{
	int fd = memfd_create("stores", 0);

	if (fd < 0 || ftruncate(fd, SIZE) != 0)
		return -1;
	text = mmap(NULL, SIZE, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_POPULATE, fd, 0);
	alias = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
	close(fd);
	if (text == MAP_FAILED || alias == MAP_FAILED)
		return -1;
	memset(alias, INT3, SIZE);
	for (size_t site = 0; site < SITES; site++) {
		memcpy(alias + first + site * APART, nop, sizeof nop);
		memcpy(alias + first + site * APART + sizeof nop, rest, sizeof rest);
	}
	return 0;
}

/* Changes a site by one store: of the aligned eight bytes if they hold the whole site, else of the eight bytes from it on. */
static void one_store(unsigned char *site, const unsigned char *new)
{
	size_t inside = (uintptr_t)site & 7;
	unsigned char *at = inside + 5 <= 8 ? site - inside : site;
	unsigned char bytes[8];
	uint64_t word;

	memcpy(bytes, at, sizeof bytes);
	memcpy(bytes + (site - at), new, 5);
	memcpy(&word, bytes, sizeof word);
	/* Assembler guarantees a single instruction also for memory that is not aligned. */
	__asm__ volatile("movq %1, (%0)" : : "r"(at), "r"(word) : "memory");
}

static void byte_by_byte(unsigned char *site, const unsigned char *new)
{
	for (size_t byte = 0; byte < 5; byte++)
		((volatile unsigned char *)site)[byte] = new[byte];
}

static void *call(void *argument)
{
	struct stores_seen *seen = argument;

	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		uint64_t neither = 0, settled = 0, stale = 0;

		for (size_t site = 0; site < SITES; site++) {
			int (*function)(void) = (int (*)(void))(uintptr_t)(text + first + site * APART);
			uint64_t before = __atomic_load_n(&state, __ATOMIC_SEQ_CST);
			int result = function();
			uint64_t after = __atomic_load_n(&state, __ATOMIC_SEQ_CST);

			neither += result != 1 && result != 2;
			if (before != after || before % 2 != 0)
				continue;
			settled++;
			stale += result == (before / 2 % 2 ? 1 : 2);
		}
		__atomic_fetch_add(&seen->neither, neither, __ATOMIC_RELAXED);
		__atomic_fetch_add(&seen->settled, settled, __ATOMIC_RELAXED);
		__atomic_fetch_add(&seen->stale, stale, __ATOMIC_RELAXED);
		__atomic_fetch_add(&seen->calls, SITES, __ATOMIC_RELAXED);
	}
	return NULL;
}

static uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * 1000 + (uint64_t)time.tv_nsec / 1000000;
}

static int flip(int how, struct stores_seen *seen, uint64_t end)
{
	for (int on = 1; now() < end; on = !on) {
		__atomic_fetch_add(&state, 1, __ATOMIC_SEQ_CST);
		for (size_t site = 0; site < SITES; site++)
			(how == STORES_ONE ? one_store : byte_by_byte)(alias + first + site * APART, on ? jmp : nop);
		if (syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE, 0, 0) != 0)
			return -1;
		__atomic_fetch_add(&state, 1, __ATOMIC_SEQ_CST);
		__atomic_fetch_add(&seen->flips, SITES, __ATOMIC_RELAXED);
		for (int rest = 0; rest < RESTS; rest++)
			__builtin_ia32_pause();
	}
	return 0;
}

int stores_run(int how, size_t offset, unsigned milliseconds, struct stores_seen *seen)
{
	long cpus = sysconf(_SC_NPROCESSORS_ONLN), callers = cpus > 1 ? cpus - 1 : 1;
	pthread_t threads[64];
	int failed;

	first = offset;
	if (callers > 64)
		callers = 64;
	if (offset >= APART || make_text() != 0)
		return -1;
	if (syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE, 0, 0) != 0)
		return -1;
	for (long caller = 0; caller < callers; caller++)
		if (pthread_create(&threads[caller], NULL, call, seen) != 0)
			return -1;
	failed = flip(how, seen, now() + milliseconds);
	__atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
	for (long caller = 0; caller < callers; caller++)
		pthread_join(threads[caller], NULL);
	return failed;
}
