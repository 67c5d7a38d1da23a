// What every guest's program needs: it is the first process, and when it is done the machine is.

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/reboot.h>
#include <unistd.h>

// Turns the machine off.
static void turn_off(void)
{
	sync();
	reboot(RB_POWER_OFF);
	for (;;)
		pause();
}

// Says why, and turns the machine off: its host looks for the last line.
static void fail(const char *what)
{
	printf("ORACLE FAILED %s: %s\n", what, strerror(errno));
	turn_off();
}
