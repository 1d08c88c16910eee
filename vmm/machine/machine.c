/* The machine: made from its description, run, reset, ended; and what its devices call. */
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include "vmm/backend/console.h"
#include "vmm/loop.h"
#include "vmm/machine/machine_priv.h"

int machine_fail(char *err, const char *fmt, ...) {
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(err, MACHINE_ERR_LEN, fmt, ap);
  va_end(ap);
  return -1;
}

static uint64_t now_ns(void) {
  struct timespec ts;
  clock_gettime(CLOCK_MONOTONIC, &ts);
  return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* ---- what devices call ---- */

static bool is_byte(uint32_t len) {
  return len == 1;
}

int vmm_pio_add(struct vmm *vmm, uint16_t base, uint32_t len, const struct vmm_range_ops *ops, void *dev) {
  return bus_add(is_byte(len) ? &vmm->pio_bytes : &vmm->pio, base, len, ops, dev);
}

int vmm_mmio_add(struct vmm *vmm, uint64_t base, uint64_t len, const struct vmm_range_ops *ops, void *dev) {
  return bus_add(&vmm->mmio, base, len, ops, dev);
}

int vmm_pio_del(struct vmm *vmm, uint16_t base) {
  int r = bus_del(&vmm->pio, base);
  return r == -ENOENT ? bus_del(&vmm->pio_bytes, base) : r;
}

int vmm_mmio_del(struct vmm *vmm, uint64_t base) {
  return bus_del(&vmm->mmio, base);
}

/* A wide access to a byte port takes its first byte there and finds nothing behind it. */
static bool access_byte_port(struct vmm *vmm, uint16_t port, uint8_t *data, unsigned len, bool write) {
  if (!bus_find(&vmm->pio_bytes, port, 1)) return false;
  if (!write) memset(data, 0xff, len);
  return bus_access(&vmm->pio_bytes, port, data, 1, write);
}

void vmm_pio_access(struct vmm *vmm, uint16_t port, void *data, unsigned len, bool write) {
  vmm_lock(vmm);
  bool claimed = is_byte(len) ? bus_access(&vmm->pio_bytes, port, data, 1, write) || bus_access(&vmm->pio, port, data, 1, write)
                              : bus_access(&vmm->pio, port, data, len, write) || access_byte_port(vmm, port, data, len, write);
  vmm_unlock(vmm);
  if (!claimed && !write) memset(data, 0xff, len);
}

void vmm_mmio_access(struct vmm *vmm, uint64_t gpa, void *data, unsigned len, bool write) {
  vmm_lock(vmm);
  bool claimed = bus_access(&vmm->mmio, gpa, data, len, write);
  vmm_unlock(vmm);
  if (!claimed && !write) memset(data, 0xff, len);
}

void vmm_lock(struct vmm *vmm) {
  pthread_mutex_lock(&vmm->lock);
}
void vmm_unlock(struct vmm *vmm) {
  pthread_mutex_unlock(&vmm->lock);
}
struct vmm_loop *vmm_event_loop(struct vmm *vmm) {
  return vmm->loop;
}

static int add_hook(struct hook_list *list, void (*fn)(void *dev), void *dev) {
  if (list->count == list->room) {
    unsigned room = list->room ? list->room * 2 : 16;
    struct hook *hooks = realloc(list->hooks, room * sizeof(*hooks));
    if (!hooks) return -ENOMEM;
    list->hooks = hooks;
    list->room = room;
  }
  list->hooks[list->count++] = (struct hook){fn, dev};
  return 0;
}

int vmm_on_reset(struct vmm *vmm, void (*fn)(void *dev), void *dev) {
  return add_hook(&vmm->on_reset, fn, dev);
}
int vmm_on_destroy(struct vmm *vmm, void (*fn)(void *dev), void *dev) {
  return add_hook(&vmm->on_destroy, fn, dev);
}

/* The caller's vCPU stops before its next KVM_RUN, for run_state is no longer RUN_GO; the main thread stops the others. */
void vmm_end(struct vmm *vmm, int code, const char *reason) {
  if (atomic_exchange(&vmm->end_claimed, true)) return;
  snprintf(vmm->end_reason, sizeof(vmm->end_reason), "%.255s", reason);
  atomic_store(&vmm->end_code, code); /* publishes the reason */
  int go = RUN_GO;
  atomic_compare_exchange_strong(&vmm->run_state, &go, RUN_PAUSE);
  vmm_loop_stop(vmm->loop);
}

/* ---- making and destroying ---- */

static int build(struct vmm *vmm, char *err) {
  if (memory_check(vmm->config->memory, err) || kernel_open(vmm, err)) return -1;
  vmm->loop = vmm_loop_create();
  if (!vmm->loop) return machine_fail(err, "the event loop cannot be made: %s", strerror(errno));
  console_guard_terminal();
  if (vm_open(vmm, err) || memory_create(vmm, err) || vcpus_create(vmm, err) || devices_create(vmm, err)) return -1;
  return vm_save_chips(vmm, err) ? -1 : kernel_load(vmm, err);
}

struct vmm *machine_create(const struct machine_config *config, char err[MACHINE_ERR_LEN]) {
  struct vmm *vmm = calloc(1, sizeof(*vmm));
  if (!vmm) {
    machine_fail(err, "out of memory");
    return NULL;
  }
  vmm->config = config;
  vmm->accel = config->accel;
  vmm->kvm_fd = vmm->vm_fd = -1;
  vmm->end_code = -1;
  pthread_mutex_init(&vmm->lock, NULL);
  pthread_mutex_init(&vmm->run_lock, NULL);
  pthread_cond_init(&vmm->run_cond, NULL);
  if (build(vmm, err) == 0) return vmm;
  machine_destroy(vmm);
  return NULL;
}

void machine_destroy(struct vmm *vmm) {
  if (!vmm) return;
  devices_destroy(vmm);
  vcpus_destroy(vmm);
  vm_close(vmm);
  memory_destroy(vmm);
  kernel_close(vmm);
  vmm_loop_destroy(vmm->loop);
  bus_free(&vmm->pio);
  bus_free(&vmm->pio_bytes);
  bus_free(&vmm->mmio);
  pthread_cond_destroy(&vmm->run_cond);
  pthread_mutex_destroy(&vmm->run_lock);
  pthread_mutex_destroy(&vmm->lock);
  free(vmm);
}

const char *machine_kernel_text(const struct vmm *vmm) {
  return vmm->kernel_text;
}

/* ---- running ---- */

static void on_signal(void *opaque, int fd, uint32_t events) {
  struct vmm *vmm = opaque;
  struct signalfd_siginfo info;
  char reason[64];
  if (read(fd, &info, sizeof(info)) != sizeof(info)) return;
  snprintf(reason, sizeof(reason), "signal %u (%s) came", info.ssi_signo, strsignal((int)info.ssi_signo));
  vmm_end(vmm, VMM_END_QUIT, reason);
}

static int watch_signals(struct vmm *vmm) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGHUP);
  int fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
  if (fd >= 0) vmm_loop_add(vmm->loop, fd, EPOLLIN, on_signal, vmm);
  return fd;
}

/* All vCPUs are stopped: devices, chips, memory and vCPUs go back to what they were at power-on.  The slots are made anew, so
 * that the accelerator forgets all that it derived from the old contents of memory. */
static int reset_machine(struct vmm *vmm, char *err) {
  vmm_lock(vmm);
  for (unsigned i = 0; i < vmm->on_reset.count; i++) vmm->on_reset.hooks[i].fn(vmm->on_reset.hooks[i].dev);
  vmm_unlock(vmm);
  migration_reset(vmm);
  int r = vm_reset_chips(vmm);
  if (r >= 0) r = memory_map(vmm, false);
  memory_clear(vmm);
  if (r >= 0) r = memory_map(vmm, true);
  if (r < 0) return machine_fail(err, "the machine cannot be reset: %s", strerror(-r));
  for (unsigned i = 0; i < vmm->vcpu_count; i++) vmm->vcpus[i].reset_due = true;
  vmm->resets++;
  return kernel_load(vmm, err);
}

/* Runs until vmm_end().  True when the machine was reset and runs on. */
static bool run_until_end(struct vmm *vmm) {
  char err[MACHINE_ERR_LEN];
  vcpus_go(vmm);
  int r = 0;
  while (r == 0 && atomic_load(&vmm->end_code) < 0) r = vmm_loop_run(vmm->loop);
  if (r < 0) vmm_end(vmm, VMM_END_ERROR, "the event loop failed");
  vcpus_pause(vmm);
  if (atomic_load(&vmm->end_code) != VMM_END_RESET || vmm->config->no_reboot) return false;
  if (reset_machine(vmm, err) == 0) {
    atomic_store(&vmm->end_code, -1);
    atomic_store(&vmm->end_claimed, false);
    return true;
  }
  snprintf(vmm->end_reason, sizeof(vmm->end_reason), "%.255s", err);
  atomic_store(&vmm->end_code, VMM_END_ERROR);
  return false;
}

void machine_run(struct vmm *vmm, struct machine_end *end) {
  char err[MACHINE_ERR_LEN];
  uint64_t start = now_ns();
  int signals = watch_signals(vmm);
  if (vcpus_start(vmm, err))
    vmm_end(vmm, VMM_END_ERROR, err);
  else
    while (run_until_end(vmm)) continue;
  vcpus_quit(vmm);
  if (signals >= 0) {
    vmm_loop_del(vmm->loop, signals);
    close(signals);
  }
  *end = (struct machine_end){.code = atomic_load(&vmm->end_code), .run_ns = now_ns() - start, .resets = vmm->resets};
  memcpy(end->reason, vmm->end_reason, sizeof(end->reason));
  for (unsigned i = 0; i < vmm->vcpu_count; i++)
    for (size_t e = 0; e < sizeof(end->exits) / sizeof(end->exits[0]); e++) end->exits[e] += vmm->vcpus[i].exits[e];
}

const char *machine_end_name(int code) {
  static const char *const names[] = {
      [VMM_END_POWEROFF] = "poweroff",
      [VMM_END_ERROR] = "error",
      [VMM_END_USAGE] = "usage",
      [VMM_END_RESET] = "reset",
      [VMM_END_PANIC] = "panic",
      [VMM_END_TRIPLE_FAULT] = "triple fault",
      [VMM_END_INTERNAL] = "internal error",
      [VMM_END_QUIT] = "quit",
  };
  if (code >= VMM_END_DEBUG_EXIT) return "debug exit";
  return code >= 0 && code < (int)(sizeof(names) / sizeof(names[0])) ? names[code] : "error";
}
