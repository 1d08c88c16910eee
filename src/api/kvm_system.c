/* Neutral ioctls of the system descriptor, and capabilities. */
#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>
#include "api/dispatch.h"
#include "core/vcpu_pages.h"

static const struct {
  long cap;
  int value;
} caps[] = {
    {KVM_CAP_USER_MEMORY, 1},      {KVM_CAP_USER_MEMORY, 1},     {KVM_CAP_DESTROY_MEMORY_REGION_WORKS, 1}, {KVM_CAP_JOIN_MEMORY_REGIONS_WORKS, 1},
    {KVM_CAP_COALESCED_MMIO, 2},   {KVM_CAP_COALESCED_PIO, 1},   {KVM_CAP_IRQFD, 1},                       {KVM_CAP_IRQFD_RESAMPLE, 1},
    {KVM_CAP_IOEVENTFD, 1},        {KVM_CAP_IOEVENTFD_NO_LENGTH, 1}, {KVM_CAP_IOEVENTFD_ANY_LENGTH, 1},    {KVM_CAP_IRQ_ROUTING, 4096},
    {KVM_CAP_SIGNAL_MSI, 1},       {KVM_CAP_ENABLE_CAP_VM, 1},   {KVM_CAP_CHECK_EXTENSION_VM, 1},          {KVM_CAP_ENABLE_CAP, 1},
    {KVM_CAP_IMMEDIATE_EXIT, 1},   {KVM_CAP_READONLY_MEM, 1},    {KVM_CAP_SYNC_MMU, 1},                    {KVM_CAP_INTERNAL_ERROR_DATA, 1},
    {KVM_CAP_NR_MEMSLOTS, 32764},  {KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, 3}, {KVM_CAP_INTERNAL_ERROR_DATA, 1},
};

long check_extension(const struct arch_ops *arch, struct vm *vm, long cap) {
  for (size_t k = 0; k < ARRAY_SIZE(caps); k++)
    if (caps[k].cap == cap) return caps[k].value;
  if (cap == KVM_CAP_MAX_VCPUS) return arch->max_vcpus;
  if (cap == KVM_CAP_MAX_VCPU_ID) return arch->max_vcpu_id;
  if (cap == KVM_CAP_NR_VCPUS) return sysconf(_SC_NPROCESSORS_ONLN);
  if (cap == KVM_CAP_MULTI_ADDRESS_SPACE) return arch->address_spaces;
  return arch->check_extension(vm, cap);
}

static long api_version(struct ioctl_ctx *c, void *data) { return c->value ? -EINVAL : KVM_API_VERSION; }
static long mmap_size(struct ioctl_ctx *c, void *data) { return c->value ? -EINVAL : (long)VCPU_MMAP_SIZE; }
static long extension(struct ioctl_ctx *c, void *data) { return check_extension(&x86_arch, NULL, (long)c->value); }

static long create_vm(struct ioctl_ctx *c, void *data) {
  struct vm *vm;
  int fd = memfd_create("kvm-vm", MFD_CLOEXEC);
  if (fd < 0) return -errno;
  int r = vm_create(&x86_arch, c->value, &vm);
  if (r) {
    close(fd);
    return r;
  }
  r = fd_install(fd, &(struct fd_object){.kind = FD_VM, .arch = &x86_arch, .vm = vm});
  if (!r) return fd;
  vm_put(vm);
  close(fd);
  return r;
}

#define ROW(req, kind, lock, handler) {.request = req, .name = #req, .arg = kind, .locks = lock, .fn = handler}
const struct ioctl_row system_rows[] = {
    ROW(KVM_GET_API_VERSION, ARG_VALUE, LOCK_NONE, api_version),
    ROW(KVM_CREATE_VM, ARG_VALUE, LOCK_NONE, create_vm),
    ROW(KVM_CHECK_EXTENSION, ARG_VALUE, LOCK_NONE, extension),
    ROW(KVM_GET_VCPU_MMAP_SIZE, ARG_VALUE, LOCK_NONE, mmap_size),
};
const unsigned n_system_rows = ARRAY_SIZE(system_rows);
