/* Eventfds of the client, held by a descriptor of our own. */
#ifndef CORE_EVENTFD_H
#define CORE_EVENTFD_H

#include "base/types.h"

struct client_eventfd {
  int fd; /* ours, close-on-exec */
  u64 id; /* the same for every descriptor of one eventfd */
};

/* -EBADF: not open; -EINVAL: not an eventfd; -EMFILE. */
int client_eventfd_get(int fd, struct client_eventfd *out);
void client_eventfd_put(struct client_eventfd *e);
/* As client_eventfd_get, but only the identity. */
int client_eventfd_id(int fd, u64 *id);
/* Adds one. */
void client_eventfd_signal(const struct client_eventfd *e);
/* Takes the count without ever waiting.  False when there was none. */
bool client_eventfd_take(const struct client_eventfd *e);

#endif
