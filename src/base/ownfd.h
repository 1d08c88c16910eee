/* Descriptors the library keeps for itself.
 *
 * They are put out of the client's way, to high numbers, so that the client's next descriptor has the number it would have with
 * the kernel's KVM; and they are remembered, so that a front end can keep a client that closes everything from closing them.
 */
#ifndef BASE_OWNFD_H
#define BASE_OWNFD_H

#include <stdbool.h>

/* Takes fd over and returns the number it has from now on; -1 for -1 (errno untouched). */
int own_fd(int fd);
void own_fd_close(int fd);

bool own_fd_is(int fd);
/* The lowest one not below first, or -1. */
int own_fd_next(unsigned first);

/* In a forked child: they are nobody's. */
void own_fd_forget_all(void);

#endif
