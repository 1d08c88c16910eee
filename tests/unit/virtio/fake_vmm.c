/* A machine for tests of PCI and virtio: implements vmm/vmm.h over plain arrays. */
#include "fake_vmm.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>

#include "vmm/loop.h"

enum { RANGES = 128, DOORBELLS = 64, MESSAGES = 1 << 16, GSIS = 24, HOOKS = 8, WAIT_SECONDS = 10 };

struct range {
  uint64_t base, len;
  const struct vmm_range_ops *ops;
  void *dev;
  bool pio;
};

struct vmm {
  pthread_mutex_t lock, irq_lock;
  pthread_cond_t irq;
  struct range range[RANGES];
  unsigned ranges;
  struct {
    uint64_t addr;
    int fd;
  } doorbell[DOORBELLS];
  unsigned doorbells;
  uint8_t *low, *high;
  bool level[GSIS];
  uint32_t message[MESSAGES];
  unsigned messages;
  struct {
    void (*fn)(void *dev);
    void *dev;
  } hook[HOOKS];
  unsigned hooks;
  struct vmm_loop *loop;
  int end;
};

struct vmm *fake_vmm_create(void) {
  struct vmm *vmm = calloc(1, sizeof *vmm);
  pthread_mutex_init(&vmm->lock, NULL);
  pthread_mutex_init(&vmm->irq_lock, NULL);
  pthread_cond_init(&vmm->irq, NULL);
  vmm->low = calloc(1, FAKE_LOW_RAM);
  vmm->high = calloc(1, FAKE_HIGH_RAM);
  vmm->loop = vmm_loop_create();
  vmm->end = -1;
  return vmm;
}

void fake_vmm_destroy(struct vmm *vmm) {
  vmm_loop_destroy(vmm->loop);
  free(vmm->low);
  free(vmm->high);
  free(vmm);
}

/* ---- vmm.h ---- */

static int add(struct vmm *vmm, bool pio, uint64_t base, uint64_t len, const struct vmm_range_ops *ops, void *dev) {
  for (unsigned i = 0; i < vmm->ranges; i++) {
    const struct range *r = &vmm->range[i];
    if (r->pio == pio && base < r->base + r->len && r->base < base + len) return -EEXIST;
  }
  if (vmm->ranges == RANGES) return -ENOMEM;
  vmm->range[vmm->ranges++] = (struct range){base, len, ops, dev, pio};
  return 0;
}

static int del(struct vmm *vmm, bool pio, uint64_t base) {
  for (unsigned i = 0; i < vmm->ranges; i++) {
    if (vmm->range[i].pio != pio || vmm->range[i].base != base) continue;
    vmm->range[i] = vmm->range[--vmm->ranges];
    return 0;
  }
  return -ENOENT;
}

int vmm_pio_add(struct vmm *vmm, uint16_t base, uint32_t len, const struct vmm_range_ops *ops, void *dev) {
  return add(vmm, true, base, len, ops, dev);
}
int vmm_mmio_add(struct vmm *vmm, uint64_t base, uint64_t len, const struct vmm_range_ops *ops, void *dev) {
  return add(vmm, false, base, len, ops, dev);
}
int vmm_pio_del(struct vmm *vmm, uint16_t base) {
  return del(vmm, true, base);
}
int vmm_mmio_del(struct vmm *vmm, uint64_t base) {
  return del(vmm, false, base);
}

static void access_range(struct vmm *vmm, bool pio, uint64_t addr, void *data, unsigned len, bool write) {
  if (!write) memset(data, 0xff, len);
  for (unsigned i = 0; i < vmm->ranges; i++) {
    struct range r = vmm->range[i];
    if (r.pio != pio || addr < r.base || addr + len > r.base + r.len) continue;
    if (write)
      r.ops->write(r.dev, addr - r.base, data, len);
    else
      r.ops->read(r.dev, addr - r.base, data, len);
    return;
  }
}

void vmm_pio_access(struct vmm *vmm, uint16_t port, void *data, unsigned len, bool write) {
  vmm_lock(vmm);
  access_range(vmm, true, port, data, len, write);
  vmm_unlock(vmm);
}

void vmm_mmio_access(struct vmm *vmm, uint64_t gpa, void *data, unsigned len, bool write) {
  vmm_lock(vmm);
  access_range(vmm, false, gpa, data, len, write);
  vmm_unlock(vmm);
}

void vmm_lock(struct vmm *vmm) {
  pthread_mutex_lock(&vmm->lock);
}
void vmm_unlock(struct vmm *vmm) {
  pthread_mutex_unlock(&vmm->lock);
}

void *vmm_ram(struct vmm *vmm, uint64_t gpa, uint64_t len) {
  if (gpa < FAKE_LOW_RAM && len <= FAKE_LOW_RAM - gpa) return vmm->low + gpa;
  if (gpa >= FAKE_HIGH_BASE && gpa - FAKE_HIGH_BASE < FAKE_HIGH_RAM && len <= FAKE_HIGH_RAM - (gpa - FAKE_HIGH_BASE))
    return vmm->high + (gpa - FAKE_HIGH_BASE);
  return NULL;
}

void vmm_irq_set(struct vmm *vmm, unsigned gsi, bool level) {
  pthread_mutex_lock(&vmm->irq_lock);
  vmm->level[gsi] = level;
  pthread_cond_broadcast(&vmm->irq);
  pthread_mutex_unlock(&vmm->irq_lock);
}

void vmm_msi_send(struct vmm *vmm, uint64_t address, uint32_t data) {
  pthread_mutex_lock(&vmm->irq_lock);
  if (vmm->messages < MESSAGES) vmm->message[vmm->messages++] = data;
  pthread_cond_broadcast(&vmm->irq);
  pthread_mutex_unlock(&vmm->irq_lock);
}

int vmm_doorbell_add(struct vmm *vmm, uint64_t addr, bool pio, int fd) {
  if (vmm->doorbells == DOORBELLS) return -ENOSPC;
  vmm->doorbell[vmm->doorbells].addr = addr;
  vmm->doorbell[vmm->doorbells++].fd = fd;
  return 0;
}

int vmm_doorbell_del(struct vmm *vmm, uint64_t addr, bool pio, int fd) {
  for (unsigned i = 0; i < vmm->doorbells; i++) {
    if (vmm->doorbell[i].addr != addr || vmm->doorbell[i].fd != fd) continue;
    vmm->doorbell[i] = vmm->doorbell[--vmm->doorbells];
    return 0;
  }
  return -ENOENT;
}

void vmm_end(struct vmm *vmm, int code, const char *reason) {
  if (vmm->end < 0) vmm->end = code;
}

struct vmm_loop *vmm_event_loop(struct vmm *vmm) {
  return vmm->loop;
}

int vmm_on_reset(struct vmm *vmm, void (*fn)(void *dev), void *dev) {
  if (vmm->hooks == HOOKS) return -ENOMEM;
  vmm->hook[vmm->hooks].fn = fn;
  vmm->hook[vmm->hooks++].dev = dev;
  return 0;
}

/* ---- for the tests ---- */

uint8_t *fake_ram(struct vmm *vmm, uint64_t gpa) {
  return vmm_ram(vmm, gpa, 1);
}

bool fake_level(struct vmm *vmm, unsigned gsi) {
  pthread_mutex_lock(&vmm->irq_lock);
  bool level = vmm->level[gsi];
  pthread_mutex_unlock(&vmm->irq_lock);
  return level;
}

static unsigned count_locked(const struct vmm *vmm, uint32_t data) {
  unsigned n = 0;
  for (unsigned i = 0; i < vmm->messages; i++) n += vmm->message[i] == data;
  return n;
}

unsigned fake_msi_count(struct vmm *vmm, uint32_t data) {
  pthread_mutex_lock(&vmm->irq_lock);
  unsigned n = count_locked(vmm, data);
  pthread_mutex_unlock(&vmm->irq_lock);
  return n;
}

bool fake_msi_wait(struct vmm *vmm, uint32_t data, unsigned count) {
  struct timespec until;
  clock_gettime(CLOCK_REALTIME, &until);
  until.tv_sec += WAIT_SECONDS;
  pthread_mutex_lock(&vmm->irq_lock);
  int r = 0;
  while (count_locked(vmm, data) < count && r == 0) r = pthread_cond_timedwait(&vmm->irq, &vmm->irq_lock, &until);
  bool there = count_locked(vmm, data) >= count;
  pthread_mutex_unlock(&vmm->irq_lock);
  return there;
}

void fake_reset(struct vmm *vmm) {
  vmm_lock(vmm);
  for (unsigned i = 0; i < vmm->hooks; i++) vmm->hook[i].fn(vmm->hook[i].dev);
  vmm_unlock(vmm);
}

struct turn {
  struct vmm_loop *loop;
  struct vmm_timer *timer;
  unsigned left;
};

static void arm_turn(struct turn *t, uint64_t in_ns) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  vmm_timer_arm(t->timer, now.tv_sec * 1000000000ull + now.tv_nsec + in_ns);
}

/* Not at the first time: whatever was ready together with the timer, and what follows from it, comes before the next. */
static void end_turn(void *opaque) {
  struct turn *t = opaque;
  if (t->left--)
    arm_turn(t, 1000 * 1000);
  else
    vmm_loop_stop(t->loop);
}

void fake_loop_turn(struct vmm *vmm) {
  struct turn t = {.loop = vmm->loop, .left = 5};
  t.timer = vmm_timer_create(vmm->loop, end_turn, &t);
  arm_turn(&t, 20 * 1000 * 1000);
  vmm_loop_run(vmm->loop);
  vmm_timer_destroy(t.timer);
}

int fake_end_code(struct vmm *vmm) {
  return vmm->end;
}

uint64_t fake_mmio_read(struct vmm *vmm, uint64_t gpa, unsigned len) {
  uint64_t value = 0;
  vmm_mmio_access(vmm, gpa, &value, len, false);
  return value;
}

void fake_mmio_write(struct vmm *vmm, uint64_t gpa, uint64_t value, unsigned len) {
  for (unsigned i = 0; i < vmm->doorbells; i++) {
    if (vmm->doorbell[i].addr != gpa) continue;
    eventfd_write(vmm->doorbell[i].fd, 1);
    return;
  }
  vmm_mmio_access(vmm, gpa, &value, len, true);
}

uint32_t fake_in(struct vmm *vmm, uint16_t port, unsigned len) {
  uint32_t value = 0;
  vmm_pio_access(vmm, port, &value, len, false);
  return value;
}

void fake_out(struct vmm *vmm, uint16_t port, uint32_t value, unsigned len) {
  vmm_pio_access(vmm, port, &value, len, true);
}

uint32_t fake_config_read(struct vmm *vmm, unsigned slot, unsigned offset, unsigned len) {
  fake_out(vmm, PCI_PIO_ADDRESS, 1u << 31 | slot << 11 | (offset & ~3u), 4);
  return fake_in(vmm, PCI_PIO_DATA + (offset & 3), len);
}

void fake_config_write(struct vmm *vmm, unsigned slot, unsigned offset, uint32_t value, unsigned len) {
  fake_out(vmm, PCI_PIO_ADDRESS, 1u << 31 | slot << 11 | (offset & ~3u), 4);
  fake_out(vmm, PCI_PIO_DATA + (offset & 3), value, len);
}
