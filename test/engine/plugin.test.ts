/**
 * What a provider plugin is told, by the name that its provider gives itself. The plugin is a fake: the runtime's own
 * CPU device under another name, since plugins need hardware that the kernel lists.
 */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, test, vi } from 'vitest';
import { loadEngine } from '../../services/lib/engine/load.ts';
import { runtime } from '../../services/lib/engine/ort-api.ts';
import { openProvider, type Provider } from '../../services/lib/engine/provider.ts';
import { ENGINE_SETTINGS } from '../../services/lib/engine/settings.ts';
import { openBundle } from '../../services/lib/model/bundle/bundle.ts';
import { exportBundle } from '../../services/lib/model/bundle/export-bundle.ts';
import { FileGuard } from '../../services/lib/model/bundle/integrity.ts';
import { createLogger } from '../../services/lib/process/log.ts';
import { openContextEncoder } from '../../services/lib/rag/encode/device-encoder.ts';
import { loadConfig } from '../../services/settings.ts';
import { smallestBundle } from '../support/smallest-bundle.ts';
import { DEVICE_MODEL } from '../support/vulkan.ts';

let dir: string;
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'llavacode-plugin-'));
});
afterAll(() => rm(dir, { recursive: true, force: true }));
afterEach(() => vi.restoreAllMocks());

/** Makes the runtime offer one device of a plugin whose provider has a name. @returns what sessions are told. */
function fakePlugin(name: string) {
  const { api } = runtime();
  const told = { options: {} as Record<string, string>, session: {} as Record<string, string> };
  const { getProviderDevices, addSessionConfigEntry } = api;
  let registered = false;
  vi.spyOn(api, 'registerProviderLibrary').mockImplementation(() => {
    registered = true;
    return null;
  });
  vi.spyOn(api, 'unregisterProviderLibrary').mockImplementation(() => null);
  vi.spyOn(api, 'getProviderDevices').mockImplementation((...args) => {
    const status = getProviderDevices(...args);
    const count = args[2] as [number];
    count[0] = registered ? 1 : 0; // the first one is the CPU's
    return status;
  });
  vi.spyOn(api, 'providerOfDevice').mockReturnValue(name);
  vi.spyOn(api, 'addSessionConfigEntry').mockImplementation((...args) => {
    told.session[args[1] as string] = args[2] as string;
    // No plugin is there: the session that proves that its device starts is left to the CPU.
    if (args[1] === 'session.disable_cpu_ep_fallback') return null;
    return addSessionConfigEntry(...args);
  });
  vi.spyOn(api, 'appendProviderDevices').mockImplementation((...args) => {
    const [, , , , keys, values, count] = args as [0, 0, 0, 0, string[], string[], number];
    expect([keys.length, values.length]).toEqual([count, count]);
    told.options = Object.fromEntries(keys.map((key, i) => [key, values[i]!]));
    return null;
  });
  return told;
}

/** Opens a session's options with a provider. */
function append(provider: Provider): void {
  const { api } = runtime();
  const options: [bigint | null] = [null];
  api.createSessionOptions(options);
  provider.append(options[0]!, {});
  api.releaseSessionOptions(options[0]!);
  provider.close();
}

describe('options of a plugin', () => {
  test.each([
    ['CUDAExecutionProvider', 'cuda', { use_tf32: '0', arena_extend_strategy: 'kSameAsRequested' }],
    ['CudaPluginExecutionProvider', 'cuda', { use_tf32: '0', 'arena.extend_strategy': '1' }],
    ['WebGpuExecutionProvider', 'webgpu', { validationMode: 'disabled' }],
  ])('%s gets those of its kind', (name, kernels, options) => {
    const told = fakePlugin(name);
    const provider = openProvider({ provider: 'plugin', providerLibrary: '/a/plugin.so' });
    append(provider);
    expect(provider.kernels).toBe(kernels);
    expect(provider.name).toMatch(new RegExp(`^${name} on `));
    expect(told.options).toMatchObject(options);
    expect(told.session['ep.cuda.fpa_intb_gemm']).toBe(kernels === 'cuda' ? '1' : undefined);
  });

  test('a provider that is not known gets none, because one that does not know them might refuse them', () => {
    const told = fakePlugin('AcmeExecutionProvider');
    const provider = openProvider({ provider: 'plugin', providerLibrary: '/a/plugin.so' });
    append(provider);
    expect(provider.kernels).toBe('plugin');
    expect(told).toEqual({ options: {}, session: {} });
  });

  test('a device that it does not offer is refused by its number', () => {
    fakePlugin('CudaPluginExecutionProvider');
    const open = () => openProvider({ provider: 'plugin', providerLibrary: '/a/plugin.so', deviceId: 1 });
    expect(open).toThrow(/the provider of \/a\/plugin\.so cannot be used \(it offers 1 devices, --device-id is 1\)/);
  });
});

describe('a plugin with the kernels of CUDA', () => {
  const config = { provider: 'auto', providerLibrary: '/a/plugin.so', deviceId: 0, threads: 1 } as const;

  test('refuses a bundle in 32 bits by name, as --provider cuda does', async () => {
    fakePlugin('CudaPluginExecutionProvider');
    const model = join(dir, 'llm');
    await exportBundle({ llm: DEVICE_MODEL, to: model, precision: 'int4', name: 'a-model' });
    const log = createLogger('test', 'silent');
    const engine = loadConfig(ENGINE_SETTINGS, { model, slots: '1', capacity: '64', prepacked: 'off' }, {});
    await expect(loadEngine({ ...engine, ...config }, 'decode', log, new FileGuard(log))).rejects.toMatchObject({
      code: 'config_invalid',
      message: expect.stringMatching(/^a-model has precision int4, and CUDA computes attention in 16 bits only/),
    });
    expect(runtime().api.unregisterProviderLibrary).toHaveBeenCalledTimes(1);
  });

  test('refuses to encode, and nothing stays open', async () => {
    fakePlugin('CudaPluginExecutionProvider');
    const bundle = await openBundle(await smallestBundle(dir));
    await expect(openContextEncoder(bundle, config, { warn: () => {} })).rejects.toMatchObject({
      code: 'config_invalid',
      message: expect.stringMatching(/^CudaPluginExecutionProvider on .* cannot encode: encoders compute in 32 bits/),
    });
    expect(runtime().api.unregisterProviderLibrary).toHaveBeenCalledTimes(1);
  });
});
