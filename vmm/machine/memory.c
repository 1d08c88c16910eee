/* The guest's RAM: one private host mapping, two slots around the hole below 4 GiB. */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sysinfo.h>

#include "vmm/boot/layout.h"
#include "vmm/machine/machine_priv.h"

enum { PAGE = 4096 };

static double mib(uint64_t bytes) {
  return (double)bytes / (1 << 20);
}

int memory_check(uint64_t size, char *err) {
  struct sysinfo si;
  if (size == 0) return machine_fail(err, "the memory size must not be 0");
  if (size % PAGE) return machine_fail(err, "the memory size %llu is not a multiple of 4096 bytes", (unsigned long long)size);
  if (size < 2 << 20) return machine_fail(err, "the memory size must be at least 2M");
  if (sysinfo(&si) == 0) {
    uint64_t host = ((uint64_t)si.totalram + si.totalswap) * si.mem_unit;
    if (size > host) return machine_fail(err, "%.0f MiB of memory are more than the host has (%.0f MiB)", mib(size), mib(host));
  }
  return 0;
}

int memory_create(struct vmm *vmm, char *err) {
  uint64_t size = vmm->config->memory;
  void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) return machine_fail(err, "%.0f MiB of memory cannot be mapped: %s", mib(size), strerror(errno));
  uint64_t low = size < LAYOUT_HOLE_START ? size : LAYOUT_HOLE_START;
  vmm->memory = p;
  vmm->ram.piece[0] = (struct boot_ram_piece){0, low, p};
  vmm->ram.piece[1] = (struct boot_ram_piece){LAYOUT_HOLE_END, size - low, (uint8_t *)p + low};
  int r = memory_map(vmm, true);
  return r < 0 ? machine_fail(err, "%.0f MiB of memory cannot be given to the guest: %s", mib(size), strerror(-r)) : 0;
}

int memory_map(struct vmm *vmm, bool map) {
  for (uint32_t i = 0; i < 2; i++) {
    const struct boot_ram_piece *p = &vmm->ram.piece[i];
    if (p->len == 0) continue;
    struct kvm_userspace_memory_region region = {
        .slot = i, .guest_phys_addr = p->gpa, .memory_size = map ? p->len : 0, .userspace_addr = (uintptr_t)p->host};
    int r = vm_ioctl(vmm, KVM_SET_USER_MEMORY_REGION, &region);
    if (r < 0) return r;
  }
  return 0;
}

void memory_clear(struct vmm *vmm) {
  madvise(vmm->memory, vmm->config->memory, MADV_DONTNEED);
}

void memory_destroy(struct vmm *vmm) {
  if (vmm->memory) munmap(vmm->memory, vmm->config->memory);
  vmm->memory = NULL;
}

void *vmm_ram(struct vmm *vmm, uint64_t gpa, uint64_t len) {
  return boot_ram_at(&vmm->ram, gpa, len);
}
