/* A machine without a processor: the buses, event loop and hooks of a real one over a KVM that only notes interrupt lines. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tests/vmm/unit/fake_kvm.h"
#include "vmm/loop.h"
#include "vmm/machine/machine_priv.h"

enum { LINES = 24 };
static bool lines[LINES];
static unsigned edges[LINES];

static int fake_ioctl(int fd, unsigned long request, void *arg) {
  const struct kvm_irq_level *irq = arg;
  if (request != KVM_IRQ_LINE || irq->irq >= LINES) return 0;
  if (irq->level && !lines[irq->irq]) edges[irq->irq]++;
  lines[irq->irq] = irq->level;
  return 0;
}

static const struct vmm_accel fake_accel = {.name = "fake", .ioctl = fake_ioctl};

struct vmm *fake_machine_create(void) {
  struct vmm *vmm = calloc(1, sizeof(*vmm));
  vmm->accel = &fake_accel;
  vmm->end_code = -1;
  vmm->loop = vmm_loop_create();
  pthread_mutex_init(&vmm->lock, NULL);
  memset(lines, 0, sizeof(lines));
  memset(edges, 0, sizeof(edges));
  return vmm;
}

void fake_machine_destroy(struct vmm *vmm) {
  devices_destroy(vmm);
  vmm_loop_destroy(vmm->loop);
  bus_free(&vmm->pio);
  bus_free(&vmm->pio_bytes);
  bus_free(&vmm->mmio);
  pthread_mutex_destroy(&vmm->lock);
  free(vmm);
}

bool fake_line(unsigned gsi) {
  return lines[gsi];
}
unsigned fake_edges(unsigned gsi) {
  return edges[gsi];
}
int fake_end_code(struct vmm *vmm) {
  return vmm->end_code;
}

void fake_reset(struct vmm *vmm) {
  vmm_lock(vmm);
  for (unsigned i = 0; i < vmm->on_reset.count; i++) vmm->on_reset.hooks[i].fn(vmm->on_reset.hooks[i].dev);
  vmm_unlock(vmm);
}

uint32_t fake_in(struct vmm *vmm, uint16_t port, unsigned len) {
  uint32_t value = 0;
  vmm_pio_access(vmm, port, &value, len, false);
  return value;
}

void fake_out(struct vmm *vmm, uint16_t port, uint32_t value, unsigned len) {
  vmm_pio_access(vmm, port, &value, len, true);
}

static void stop(void *opaque) {
  vmm_loop_stop(opaque);
}

void fake_loop(struct vmm *vmm, unsigned ms) {
  struct timespec ts;
  clock_gettime(CLOCK_MONOTONIC, &ts);
  struct vmm_timer *t = vmm_timer_create(vmm->loop, stop, vmm->loop);
  vmm_timer_arm(t, (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec + ms * 1000000ull);
  vmm_loop_run(vmm->loop);
  vmm_timer_destroy(t);
}
