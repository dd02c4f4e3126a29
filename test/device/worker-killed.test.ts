/**
 * Workers on the tests' software GPU die under load: every stream is, token for token, what the CPU answers alone. The
 * prompts are computed on the GPU as well: their KV caches go from one process's device to that of another, and come
 * again when a sequence is replayed.
 */
import { afterAll, beforeAll, expect, test } from 'vitest';
import { streamCompletion } from '../../services/client.ts';
import type { ServiceProcess } from '../../services/supervisor.ts';
import { PlainModel, startTestSystem, type TestSystem } from '../support/system.ts';
import { COMPILING_MS, DEVICE_MODEL, vulkanEnvironment } from '../support/vulkan.ts';

/** So many that the kill finds the worker at work: a step takes 6 ms of CPU. */
const TOKENS = 160;
const STREAMS = 3;
let system: TestSystem;
let restore: () => void;

beforeAll(async () => {
  const before = { ...process.env };
  restore = () => {
    for (const name of Object.keys(process.env)) if (!(name in before)) delete process.env[name];
    Object.assign(process.env, before);
  };
  Object.assign(process.env, await vulkanEnvironment('right')); // which the processes of the system inherit
  system = await startTestSystem(
    DEVICE_MODEL,
    { slots: 2, capacity: 256 },
    {
      decode: 2,
      prefillOnly: { provider: 'webgpu' },
      decodeOnly: { provider: 'webgpu' },
      gateway: { stallTimeoutMs: 120_000, requestTimeoutMs: COMPILING_MS, targetTtftMs: COMPILING_MS },
    },
  );
}, COMPILING_MS);
afterAll(async () => {
  await system?.close();
  restore?.();
});

const decoders = () => system.processes.filter(({ name }) => name.startsWith('decode'));
const scrape = async ({ metricsAddress }: ServiceProcess, path: string) =>
  (await fetch(`http://${metricsAddress}/${path}`)).text();
const running = async (worker: ServiceProcess) =>
  Number(/^vllm:num_requests_running\{[^}]*\} (\d+)/m.exec(await scrape(worker, 'metrics').catch(() => ''))?.[1] ?? 0);

async function busiest(): Promise<ServiceProcess> {
  const loads = await Promise.all(decoders().map(running));
  return decoders()[loads.indexOf(Math.max(...loads))]!;
}

test('a worker says in /readyz and in its metrics that it computes on a GPU, and why', async () => {
  const [worker] = decoders();
  expect(await scrape(worker!, 'readyz')).toMatch(/^ready\ncomputes on WebGPU on llvmpipe .* \(--provider webgpu\)$/);
  expect(await scrape(worker!, 'metrics')).toMatch(
    /^llavacode:device_info\{kind="webgpu",name="WebGPU on llvmpipe [^"]*",reason="--provider webgpu",service="decode"/m,
  );
});

test(
  'kill -9 of a worker on a GPU under load changes no stream',
  async () => {
    const prompts = Array.from({ length: STREAMS }, (_, seed) =>
      Array.from({ length: 40 }, (_, i) => ((i + 1) * 7919 * (seed + 1)) % 500),
    );
    const plain = await PlainModel.load(system.bundle, 256);
    const expected: number[][] = [];
    for (const prompt of prompts) expected.push(await plain.greedy(prompt, TOKENS));
    await plain.dispose();
    let chunks = 0;
    let killed: Promise<number> | undefined;
    const onChunk = () => {
      if (++chunks !== STREAMS * 3) return;
      killed = busiest().then(({ pid }) => {
        process.kill(pid!, 'SIGKILL');
        return pid!;
      });
    };
    const streams = prompts.map((prompt) =>
      streamCompletion(
        system.url,
        { prompt, max_tokens: TOKENS, temperature: 0, ignore_eos: true, return_token_ids: true },
        AbortSignal.timeout(COMPILING_MS),
        { onChunk },
      ),
    );
    expect((await Promise.all(streams)).map(({ tokenIds }) => tokenIds)).toEqual(expected);
    expect(await killed).toBeGreaterThan(0);
    const text = await (await fetch(`${system.url}/metrics`)).text();
    const replays = [...text.matchAll(/^llavacode:replays_total\{[^}]*\} (\d+)/gm)].map(([, count]) => Number(count));
    expect(replays.reduce((a, b) => a + b, 0)).toBeGreaterThan(0);
  },
  COMPILING_MS,
);

test(
  'the worker that was killed comes back, after it was checked again',
  async () => {
    const usable = async () => {
      const text = await (await fetch(`${system.url}/metrics`)).text();
      return Number(/^llavacode:workers_usable\{[^}]*role="decode"[^}]*\} (\d+)/m.exec(text)?.[1] ?? 0);
    };
    await expect.poll(usable, { timeout: COMPILING_MS, interval: 500 }).toBe(2);
    for (const worker of decoders()) expect(await scrape(worker, 'readyz')).toMatch(/^ready\ncomputes on WebGPU/);
    const text = await (await fetch(`${system.url}/metrics`)).text();
    expect(text).toMatch(/^llavacode:workers_by_device\{role="decode",device="webgpu",.*\} 2$/m);
    expect(text).toMatch(/^llavacode:workers_by_device\{role="prefill",device="webgpu",.*\} 1$/m);
  },
  COMPILING_MS,
);
