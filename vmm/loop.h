/* The main thread's event loop: descriptors and timers with callbacks, over epoll. */
#ifndef VMM_LOOP_H
#define VMM_LOOP_H

#include <stdbool.h>
#include <stdint.h>

struct vmm_loop;
struct vmm_timer;

typedef void vmm_fd_fn(void *opaque, int fd, uint32_t epoll_events);
typedef void vmm_timer_fn(void *opaque);

struct vmm_loop *vmm_loop_create(void);
void vmm_loop_destroy(struct vmm_loop *loop);

/* Watches fd for EPOLLIN/EPOLLOUT.  Any thread.  0 or -errno. */
int vmm_loop_add(struct vmm_loop *loop, int fd, uint32_t events, vmm_fd_fn *fn, void *opaque);
int vmm_loop_mod(struct vmm_loop *loop, int fd, uint32_t events);
int vmm_loop_del(struct vmm_loop *loop, int fd);

/* One-shot timers on CLOCK_MONOTONIC; deadline_ns is absolute.  Arm again from the callback for a period. */
struct vmm_timer *vmm_timer_create(struct vmm_loop *loop, vmm_timer_fn *fn, void *opaque);
void vmm_timer_arm(struct vmm_timer *timer, uint64_t deadline_ns);
void vmm_timer_cancel(struct vmm_timer *timer);
void vmm_timer_destroy(struct vmm_timer *timer);

/* Runs until vmm_loop_stop(), which any thread (and a signal handler) may call. */
int vmm_loop_run(struct vmm_loop *loop);
void vmm_loop_stop(struct vmm_loop *loop);

#endif
