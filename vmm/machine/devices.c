/* The devices of the machine, in the order in which they are made. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/backend/console.h"
#include "vmm/boot/layout.h"
#include "vmm/dev/dev.h"
#include "vmm/machine/machine_priv.h"
#include "vmm/pci/pci.h"
#include "vmm/virtio/virtio.h"

static int create_com1(struct vmm *vmm, char *err) {
  char why[CONSOLE_ERR_LEN];
  vmm->com1 = console_open(vmm, vmm->config->console, why);
  if (!vmm->com1) return machine_fail(err, "%s", why);
  return uart_create(vmm, 0x3f8, 4, vmm->com1);
}

static int create_rtc(struct vmm *vmm, char *err) {
  return rtc_create(vmm, vmm->config->memory, vmm->config->cpus);
}
static int create_i8042(struct vmm *vmm, char *err) {
  return i8042_create(vmm);
}
static int create_acpi_pm(struct vmm *vmm, char *err) {
  return acpi_pm_create(vmm);
}
static int create_system_ports(struct vmm *vmm, char *err) {
  return system_ports_create(vmm);
}
static int create_pvpanic(struct vmm *vmm, char *err) {
  return pvpanic_create(vmm);
}
static int create_debug_exit(struct vmm *vmm, char *err) {
  return vmm->config->debug_exit ? debug_exit_create(vmm) : 0;
}

static int create_pci(struct vmm *vmm, char *err) {
  vmm->pci = pci_host_create(vmm);
  if (!vmm->pci) return -errno;
  return pci_host_add_ecam(vmm->pci, LAYOUT_ECAM);
}

static int create_disks(struct vmm *vmm, char *err) {
  char why[VIRTIO_ERR_MAX];
  for (unsigned i = 0; i < vmm->config->disk_count; i++) {
    const struct virtio_blk_options options = {.path = vmm->config->disks[i].path, .readonly = vmm->config->disks[i].readonly};
    if (virtio_blk_create(vmm, vmm->pci, &options, why)) return machine_fail(err, "%s", why);
  }
  return 0;
}

static int create_nets(struct vmm *vmm, char *err) {
  char why[VIRTIO_ERR_MAX];
  for (unsigned i = 0; i < vmm->config->net_count; i++) {
    const struct virtio_net_options options = {.spec = vmm->config->nets[i]};
    if (virtio_net_create(vmm, vmm->pci, &options, why)) return machine_fail(err, "%s", why);
  }
  return 0;
}

static int create_rng(struct vmm *vmm, char *err) {
  char why[VIRTIO_ERR_MAX];
  if (vmm->config->rng && virtio_rng_create(vmm, vmm->pci, why)) return machine_fail(err, "%s", why);
  return 0;
}

static int create_hvc(struct vmm *vmm, char *err) {
  char why[CONSOLE_ERR_LEN];
  if (!vmm->config->virtio_console) return 0;
  vmm->hvc0 = console_open(vmm, vmm->config->virtio_console, why);
  if (!vmm->hvc0) return machine_fail(err, "%s", why);
  const struct virtio_console_options options = {.console = vmm->hvc0};
  if (virtio_console_create(vmm, vmm->pci, &options, NULL, why)) return machine_fail(err, "%s", why);
  return 0;
}

/* create: 0, or -1 and err, or -errno. */
static const struct {
  const char *name;
  int (*create)(struct vmm *vmm, char *err);
} devices[] = {
    {"system ports", create_system_ports},
    {"keyboard controller", create_i8042},
    {"real-time clock", create_rtc},
    {"ACPI registers", create_acpi_pm},
    {"pvpanic port", create_pvpanic},
    {"debug exit port", create_debug_exit},
    {"PCI bus", create_pci},
    {"disks", create_disks},
    {"network", create_nets},
    {"random number device", create_rng},
    {"virtio console", create_hvc},
    {"serial port", create_com1},
};

int devices_create(struct vmm *vmm, char *err) {
  for (size_t i = 0; i < sizeof(devices) / sizeof(devices[0]); i++) {
    *err = 0;
    int r = devices[i].create(vmm, err);
    if (r == 0) continue;
    if (!*err) machine_fail(err, "the %s cannot be made: %s", devices[i].name, strerror(-r));
    return -1;
  }
  return 0;
}

static void run_hooks_backwards(struct hook_list *list) {
  while (list->count) {
    struct hook h = list->hooks[--list->count];
    h.fn(h.dev);
  }
  free(list->hooks);
  *list = (struct hook_list){0};
}

void devices_destroy(struct vmm *vmm) {
  if (vmm->pci) pci_host_destroy(vmm->pci);
  console_close(vmm->hvc0);
  console_close(vmm->com1);
  run_hooks_backwards(&vmm->on_destroy);
  free(vmm->on_reset.hooks);
}
