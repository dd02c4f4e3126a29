/**
 * Which device an engine is loaded on, by the settings. A device that is named is taken or the start fails. `auto`
 * takes a GPU only if the system lists one and the engine passes its check there, and the CPU otherwise: a software
 * device would be slower than the CPU, and a GPU that computes wrong is worse than none.
 */
import type { ConfigOf } from '../process/config.ts';
import { ServingError } from '../process/errors.ts';
import type { DeviceKind, DeviceSetting } from './device.ts';
import { gpuVendors } from './provider.ts';
import type { DEVICE_SETTINGS } from './settings.ts';
import { inWords, type VulkanDevice, vulkanDevices } from './vulkan.ts';

/** The providers that `auto` tries, the fastest first. */
const GPU_PROVIDERS = ['cuda', 'webgpu'] as const;

export type DeviceConfig = Pick<ConfigOf<typeof DEVICE_SETTINGS>, 'provider' | 'providerLibrary' | 'deviceId'> & {
  readonly deviceMemory?: number;
};

/** Told of each GPU that is there and cannot be used. */
export interface DeviceLog {
  warn(fields: { readonly provider: string; readonly code: string; readonly reason: string }, text: string): void;
}

/** What a process computes on, for its log, its metrics and its probes. */
export interface DeviceReport {
  readonly kind: DeviceKind;
  /** The provider and the device, as the runtime names them. */
  readonly name: string;
  /** Why this device: the setting that names it, or what `auto` found. */
  readonly reason: string;
}

/**
 * Loads on the device that the settings ask for.
 * @param load opens the device, loads on it and checks it there; must leave nothing open when it fails.
 * @param gpus the vendors of the GPUs that the system lists.
 * @param vulkan the devices that Vulkan lists.
 * @returns what `load` gave, and why it was that device.
 * @throws ServingError config_invalid for settings that contradict each other; what `load` throws for a device that the
 *   settings name, or for the CPU.
 */
export async function loadOnDevice<T>(
  config: DeviceConfig,
  log: DeviceLog,
  load: (setting: DeviceSetting) => Promise<T>,
  gpus: () => readonly string[] = gpuVendors,
  vulkan: () => readonly VulkanDevice[] = vulkanDevices,
): Promise<{ readonly loaded: T; readonly reason: string }> {
  assertConsistent(config);
  const { provider, providerLibrary, deviceId } = config;
  if (providerLibrary !== '') {
    return { loaded: await load({ provider: 'plugin', providerLibrary, deviceId }), reason: '--provider-library' };
  }
  if (provider !== 'auto') {
    const setting = provider === 'cpu' ? { provider } : { provider, deviceId };
    return { loaded: await load(setting), reason: `--provider ${provider}` };
  }
  const refused: string[] = [];
  for (const candidate of candidates(config, log, { gpus, vulkan }, refused)) {
    try {
      const loaded = await load({ provider: candidate, deviceId });
      return { loaded, reason: ['auto: it passes its check', ...refused].join('; ') };
    } catch (error) {
      const { code, message } = ServingError.from(error);
      log.warn({ provider: candidate, code, reason: message }, 'the engine cannot use a GPU that is there');
      refused.push(`${candidate} was refused: ${message}`);
    }
  }
  const idle = settingsOfGpus(config).map((setting) => `${setting} has no effect`);
  return { loaded: await load({ provider: 'cpu' }), reason: `auto: ${[...refused, ...idle].join('; ')}` };
}

/**
 * The providers that `auto` tries; the CPU comes after them.
 * @param refused is told why others are not tried.
 */
function candidates(
  { deviceId }: DeviceConfig,
  log: DeviceLog,
  { gpus, vulkan }: { readonly gpus: () => readonly string[]; readonly vulkan: () => readonly VulkanDevice[] },
  refused: string[],
) {
  try {
    if (gpus().length > 0) {
      const devices = vulkan();
      const onlySoftware = devices.length > 0 && devices.every(({ software }) => software);
      if (deviceId === 0 && !onlySoftware) return GPU_PROVIDERS;
      refused.push(
        onlySoftware
          ? `webgpu would take no GPU: Vulkan lists ${inWords(devices)} only, so install the GPU's driver`
          : `webgpu cannot take --device-id ${deviceId}`,
      );
      return GPU_PROVIDERS.filter((provider) => provider !== 'webgpu');
    }
    refused.push('the system lists no GPU');
  } catch (error) {
    const { code, message } = ServingError.from(error);
    log.warn({ provider: 'auto', code, reason: message }, 'the GPUs of the system cannot be listed');
    refused.push(`the GPUs of the system cannot be listed: ${message}`);
  }
  return [];
}

/** Settings that are given and mean something on a GPU only. (The engine says itself that it records no steps.) */
const settingsOfGpus = ({ deviceId, deviceMemory }: DeviceConfig) => [
  ...(deviceId > 0 ? [`--device-id ${deviceId}`] : []),
  ...(deviceMemory === undefined ? [] : [`--device-memory ${deviceMemory}`]),
];

/** @throws ServingError config_invalid */
function assertConsistent(config: DeviceConfig): void {
  const { provider, providerLibrary, deviceId } = config;
  const refusal = (message: string) => new ServingError('config_invalid', message);
  if (providerLibrary !== '' && provider !== 'auto') {
    throw refusal(
      `--provider ${provider} and --provider-library ${providerLibrary} contradict each other: leave one of them out`,
    );
  }
  if (provider === 'webgpu' && deviceId > 0) {
    throw refusal(
      `--device-id ${deviceId} cannot be chosen with --provider webgpu, which takes the GPU that Vulkan lists ` +
        'first: leave it out, and give the process that GPU alone (VK_DRIVER_FILES, or the devices of a container)',
    );
  }
  const [unused] = provider === 'cpu' ? settingsOfGpus(config) : [];
  if (unused !== undefined) {
    throw refusal(`${unused} has no effect with --provider cpu: leave it out, or name the GPU's provider`);
  }
}
