/**
 * `llavacode devices`: which devices this machine has, and whether each computes a bundle right. It is what an operator
 * runs first on a new machine: the same check runs at the start of every worker.
 */
import { readFile } from 'node:fs/promises';
import { type DeviceKind, type DeviceSetting, openDevice } from './lib/engine/device.ts';
import { keepReference, loadEngine } from './lib/engine/load.ts';
import { gpuVendors } from './lib/engine/provider.ts';
import { CHECKED_POSITIONS, type SelfCheck } from './lib/engine/self-check.ts';
import { ENGINE_SETTINGS } from './lib/engine/settings.ts';
import { FileGuard } from './lib/model/bundle/integrity.ts';
import type { ConfigOf } from './lib/process/config.ts';
import { ServingError } from './lib/process/errors.ts';
import { createLogger } from './lib/process/log.ts';
import { startProgress } from './lib/process/progress.ts';
import { type DEVICES_SETTINGS, loadConfig } from './settings.ts';

interface DeviceState {
  readonly provider: DeviceKind;
  /** `right`: it passes the check. `starts`: it was opened, and no bundle was given. `refused`: see the reason. */
  readonly verdict: 'right' | 'starts' | 'refused';
  /** The provider and the device, as the runtime names them, where it was opened. */
  readonly name?: string;
  readonly check?: SelfCheck;
  readonly reason?: string;
}

interface Devices {
  /** Vendors of the GPUs that the system lists. Where there is none, `--provider auto` takes the CPU. */
  readonly gpus: readonly string[];
  /** The driver of NVIDIA's GPUs, as the kernel names it. */
  readonly nvidiaDriver?: string;
  readonly devices: readonly DeviceState[];
}

/**
 * Tries one device after the other, and says on stderr what comes out.
 * @throws ServingError of a bundle that cannot be loaded on the CPU either.
 */
export async function runDevices(config: ConfigOf<typeof DEVICES_SETTINGS>): Promise<Devices> {
  const { model, providerLibrary, deviceId, threads } = config;
  const gpus = gpuVendors();
  const nvidiaDriver = await readFile('/proc/driver/nvidia/version', 'utf8').then(
    (text) => text.split('\n')[0],
    () => undefined,
  );
  const listed = gpus.length === 0 ? 'no GPU: --provider auto takes the CPU' : gpus.join(', ');
  const progress = startProgress('asking the system for GPUs');
  progress.succeed(`the system lists ${listed}${nvidiaDriver ? `; ${nvidiaDriver}` : ''}`);
  const settings: DeviceSetting[] = [
    { provider: 'cpu' },
    { provider: 'webgpu' },
    { provider: 'cuda', deviceId },
    ...(providerLibrary ? [{ provider: 'plugin', providerLibrary, deviceId } as const] : []),
  ];
  const devices: DeviceState[] = [];
  for (const setting of settings) {
    progress.start(`${setting.provider}: ${model ? 'computing a prompt of 48 tokens and a step' : 'opening'}`);
    const state = await tried(setting, model, threads).catch((error) => {
      progress.fail();
      throw error;
    });
    devices.push(state);
    if (state.verdict === 'refused') progress.warn(`${setting.provider}: ${state.reason}`);
    else progress.succeed(`${setting.provider}: ${described(state)}`);
  }
  return { gpus, nvidiaDriver, devices };
}

const described = ({ name, verdict, check }: DeviceState) =>
  check
    ? `${name} computes right: KL divergence from the CPU ${check.kl.toExponential(1)}, ` +
      `of one run from two ${check.chunkedKl.toExponential(1)}`
    : `${name} ${verdict === 'right' ? 'computes the bundle' : 'starts; --model checks whether it computes right'}`;

async function tried(setting: DeviceSetting, model: string, threads: number): Promise<DeviceState> {
  const { provider } = setting;
  try {
    if (model === '') {
      const device = await openDevice(setting);
      await device.dispose();
      return { provider, verdict: 'starts', name: device.name };
    }
    const { name, check } = await checked(setting, model, threads);
    return { provider, verdict: 'right', name, check };
  } catch (error) {
    return refusedState(provider, error);
  }
}

/**
 * What is said of a device that cannot compute. A model that the machine's memory cannot hold may still fit a GPU, if
 * what it is compared with was brought here.
 * @throws the error, if the CPU met it for another reason: then the bundle is at fault.
 */
export function refusedState(provider: DeviceKind, error: unknown): DeviceState {
  const { code, message } = ServingError.from(error);
  if (provider === 'cpu' && code !== 'out_of_memory') throw error;
  return { provider, verdict: 'refused', reason: message };
}

/**
 * Loads a bundle as a decode worker with two short slots does. The CPU leaves in the bundle what GPUs are compared
 * with, also on a machine that has none: a GPU's machine may lack the memory to compute it.
 */
async function checked(setting: DeviceSetting, model: string, threads: number) {
  const flags = {
    model,
    ...(setting.provider === 'plugin' ? { providerLibrary: setting.providerLibrary } : { provider: setting.provider }),
    ...(setting.provider === 'cpu' ? {} : { deviceId: `${setting.deviceId ?? 0}` }),
    threads: `${threads}`,
    slots: '2',
    capacity: `${CHECKED_POSITIONS}`,
  };
  const log = createLogger('devices', 'silent');
  const files = new FileGuard(log);
  const engine = await loadEngine(loadConfig(ENGINE_SETTINGS, flags, {}), 'decode', log, files);
  try {
    if (setting.provider === 'cpu') await keepReference(engine, log, files);
    await files.settled();
    return { name: engine.device.name, check: engine.check };
  } finally {
    await engine.dispose();
  }
}
