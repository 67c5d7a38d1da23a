// SPDX-License-Identifier: MIT OR Apache-2.0
/* Functions of Linux that the scenes' modules use besides live patching, for a process; for Linux: xtask/guest/klp/scene.h. */
#ifndef SCENE_H
#define SCENE_H

#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#include <modload/module.h>

#define READ_ONCE(x) __atomic_load_n(&(x), __ATOMIC_ACQUIRE)
#define WRITE_ONCE(x, value) __atomic_store_n(&(x), value, __ATOMIC_RELEASE)

/* Provided by the scenes' host, in place of files in /proc and of the level of the console. */
struct seq_file;
void seq_puts(struct seq_file *file, const char *text);
extern int console_printk[4];
#define console_loglevel (console_printk[0])
#define CONSOLE_LOGLEVEL_MOTORMOUTH 15

#define kzalloc(size, flags) calloc(1, size)
#define kfree free
#define msleep(milliseconds) usleep((milliseconds) * 1000)

/* Work that runs in a thread of its own. */
struct work_struct {
	void (*function)(struct work_struct *work);
	pthread_t thread;
};
#define DECLARE_WORK(name, work_function) struct work_struct name = { .function = (work_function) }

static inline void *work_thread(void *data)
{
	struct work_struct *work = data;

	work->function(work);
	return NULL;
}

static inline void schedule_work(struct work_struct *work)
{
	if (pthread_create(&work->thread, NULL, work_thread, work))
		abort();
}

/* Waits once for the end of the work. */
static inline void flush_work(struct work_struct *work)
{
	if (work->thread)
		pthread_join(work->thread, NULL);
	work->thread = 0;
}

struct completion {
	int done;
};
#define DECLARE_COMPLETION(name) struct completion name = { 0 }

static inline void complete(struct completion *completion)
{
	WRITE_ONCE(completion->done, 1);
}

static inline void wait_for_completion(struct completion *completion)
{
	while (!READ_ONCE(completion->done))
		usleep(100);
}

#endif
