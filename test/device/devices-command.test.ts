/** `llavacode devices` as an operator runs it, on the software GPU that computes right and on none at all. */
import { execFile } from 'node:child_process';
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, expect, test, vi } from 'vitest';
import { refusedState } from '../../services/devices.ts';
import { referenceName } from '../../services/lib/engine/reference.ts';
import { openBundle } from '../../services/lib/model/bundle/bundle.ts';
import { exportBundle } from '../../services/lib/model/bundle/export-bundle.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';
import { COMPILING_MS, DEVICE_MODEL, type VulkanDevice, vulkanEnvironment } from '../support/vulkan.ts';

vi.setConfig({ testTimeout: COMPILING_MS });
let dir: string;
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'llavacode-devices-'));
  await exportBundle({ llm: DEVICE_MODEL, to: join(dir, 'bundle'), precision: 'fp32' });
});
afterAll(() => rm(dir, { recursive: true, force: true }));

async function devices(device: VulkanDevice, ...args: string[]) {
  const json = join(dir, `${device}.json`);
  const env = { ...process.env, ...(await vulkanEnvironment(device)) };
  const command = [join(PACKAGE_ROOT, 'dist/services/cli.js'), 'devices', '--threads', '2', '--json', json, ...args];
  const { stderr } = await promisify(execFile)(process.execPath, command, { env, timeout: COMPILING_MS });
  return { stderr, report: JSON.parse(await readFile(json, 'utf8')) };
}

test('a machine without a GPU keeps in the bundle what a GPU elsewhere is compared with', async () => {
  const bundle = join(dir, 'bundle');
  const { report } = await devices('none', '--model', bundle);
  expect(report.devices[0]).toEqual({ provider: 'cpu', verdict: 'right', name: 'CPU' });
  expect(report.devices[1]).toMatchObject({ provider: 'webgpu', verdict: 'refused' });
  const { manifest } = await openBundle(bundle);
  expect(await readdir(join(bundle, 'prepacked'))).toContain(referenceName(manifest.fingerprint));
});

test('a model that the CPU lacks memory for is still tried on a GPU, and other faults of the bundle are not', () => {
  const tooLarge = new ServingError('out_of_memory', 'the weights take 61.0 GiB');
  expect(refusedState('cpu', tooLarge)).toEqual({ provider: 'cpu', verdict: 'refused', reason: tooLarge.message });
  const damaged = new ServingError('bundle_invalid', 'llm/model.onnx has another digest');
  expect(() => refusedState('cpu', damaged)).toThrow(damaged);
  expect(refusedState('webgpu', damaged)).toMatchObject({ provider: 'webgpu', verdict: 'refused' });
});

test('each device is tried with the bundle, and the verdict has its figures', async () => {
  const { stderr, report } = await devices('right', '--model', join(dir, 'bundle'));
  expect(report).toMatchObject({
    devices: [
      { provider: 'cpu', verdict: 'right', name: 'CPU' },
      {
        provider: 'webgpu',
        verdict: 'right',
        name: expect.stringMatching(/^WebGPU on llvmpipe /),
        check: { kl: expect.any(Number) },
      },
      { provider: 'cuda', verdict: 'refused', reason: expect.stringMatching(/16 bits only.*--precision fp16/) },
    ],
  });
  expect(stderr).toMatch(/the system lists /);
  expect(stderr).toMatch(/webgpu: WebGPU on llvmpipe .* computes right: KL divergence from the CPU \d\.\de-\d/);
});

test('without a bundle devices are only opened, and what is missing is named', async () => {
  const { stderr, report } = await devices('none');
  expect(report.devices).toMatchObject([
    { provider: 'cpu', verdict: 'starts' },
    { provider: 'webgpu', verdict: 'refused', reason: expect.stringMatching(/Vulkan driver/) },
    { provider: 'cuda' }, // what a machine lacks for it is its own matter: test/engine/provider-missing.test.ts
  ]);
  expect(stderr).toMatch(/cpu: CPU starts; --model checks whether it computes right/);
});
