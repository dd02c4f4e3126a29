/**
 * What traces, exemplars and scrapes cost: two systems of one kind run side by side, one exports its traces and is
 * scraped, the other one neither. Requests go to them in turns, one at a time, and which of both is asked first changes
 * with every pair, so that disturbances by other programs fall on both. The metrics themselves are always counted.
 */

import { text } from 'node:stream/consumers';
import { setTimeout as sleep } from 'node:timers/promises';
import { streamCompletion, tpotMs, ttftMs } from '../../services/client.ts';
import { sendRequest } from '../../services/http-call.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import type { RunningSystem } from '../../services/supervisor.ts';
import type { PromptMaker } from '../system/prompts.ts';
import type { ReceivedSpan, receiveTraces } from './collector.ts';
import type { ObservabilityOptions } from './command.ts';

type Collector = Awaited<ReturnType<typeof receiveTraces>>;

/** One request to each system, with the same prompt. */
export interface ObservedPair {
  readonly onTtftMs: number;
  readonly offTtftMs: number;
  readonly onTpotMs: number | undefined;
  readonly offTpotMs: number | undefined;
}

/** CPU time of one kind of process for each request, in ms: all threads, user and system time. */
export interface CpuOfRole {
  readonly role: string;
  readonly onMs: number;
  readonly offMs: number;
}

export interface ObservabilityResult {
  readonly model: string;
  readonly promptTokens: number;
  readonly outputTokens: number;
  readonly pairs: readonly ObservedPair[];
  /**
   * Of the gateway, and of all workers of a role together. It covers the counted pairs and the scrapes meanwhile.
   * Artifacts that were made before 2026-11-30 have none.
   */
  readonly cpu?: readonly CpuOfRole[];
  readonly spansPerRequest: number;
  /** A completion whose decode worker was killed while it ran. */
  readonly trace: readonly ReceivedSpan[];
}

/** Pause between two scrapes of a process, in ms: a common setting of Prometheus is longer. */
const SCRAPE_EVERY_MS = 5_000;
const OPEN_METRICS = 'application/openmetrics-text;version=1.0.0';

type Sending = Pick<ObservabilityOptions, 'promptTokens' | 'outputTokens' | 'timeoutMs'>;

const bodyOf = (prompts: PromptMaker, i: number, { promptTokens, outputTokens }: Sending) => ({
  ...prompts.make(i, { tokens: promptTokens, context: 'off', contextTokens: 0 }),
  max_tokens: outputTokens,
  temperature: 0,
  ignore_eos: true,
});

/** The first pair warms up and is not counted. */
export async function measurePairs(
  on: RunningSystem,
  off: RunningSystem,
  prompts: PromptMaker,
  options: Sending & Pick<ObservabilityOptions, 'pairs'>,
  onPair: (pair: number) => void,
): Promise<Pick<ObservabilityResult, 'pairs' | 'cpu'>> {
  const pairs: ObservedPair[] = [];
  const over = new AbortController();
  const scraping = scrape(on, over.signal);
  const cpuOf = () =>
    Promise.all([on, off].map((system) => cpuSeconds(system, AbortSignal.timeout(options.timeoutMs))));
  let before: Awaited<ReturnType<typeof cpuOf>> = [];
  try {
    for (let i = 0; i <= options.pairs; i++) {
      const figures = new Map<RunningSystem, { readonly ttft: number; readonly tpot: number | undefined }>();
      for (const system of i % 2 === 0 ? [on, off] : [off, on]) {
        const done = await streamCompletion(
          system.url,
          bodyOf(prompts, i, options),
          AbortSignal.timeout(options.timeoutMs),
        );
        figures.set(system, { ttft: ttftMs(done), tpot: tpotMs(done) });
      }
      const [a, b] = [figures.get(on)!, figures.get(off)!];
      if (i > 0) pairs.push({ onTtftMs: a.ttft, offTtftMs: b.ttft, onTpotMs: a.tpot, offTpotMs: b.tpot });
      if (i === 0) before = await cpuOf();
      onPair(i);
    }
    return { pairs, cpu: cpuPerRequest(before, await cpuOf(), options.pairs) };
  } finally {
    over.abort();
    await scraping;
  }
}

/** CPU seconds that the processes of a system have used so far, by role. */
async function cpuSeconds(
  { url, processes }: RunningSystem,
  signal: AbortSignal,
): Promise<ReadonlyMap<string, number>> {
  const total = new Map<string, number>();
  const targets = processes.map(({ name, metricsAddress }) => ({ name, address: `http://${metricsAddress}` }));
  for (const { name, address } of [{ name: 'gateway', address: url }, ...targets]) {
    const found = /^process_cpu_seconds_total(?:\{[^}]*\})? (\S+)/m.exec(await metricsOf(`${address}/metrics`, signal));
    if (!found) throw new ServingError('internal', `${name} does not say on /metrics how much CPU time it has used`);
    const role = name.replace(/-\d+$/, '');
    total.set(role, (total.get(role) ?? 0) + Number(found[1]));
  }
  return total;
}

type CpuOfBoth = readonly ReadonlyMap<string, number>[];

function cpuPerRequest([onBefore, offBefore]: CpuOfBoth, [on, off]: CpuOfBoth, requests: number): CpuOfRole[] {
  const ms = (role: string, before: CpuOfBoth[number] | undefined, after: CpuOfBoth[number]) =>
    (1000 * (after.get(role)! - (before?.get(role) ?? 0))) / requests;
  return [...on!.keys()].map((role) => ({ role, onMs: ms(role, onBefore, on!), offMs: ms(role, offBefore, off!) }));
}

/** Scrapes every process of a system as Prometheus does, until the signal aborts. */
async function scrape({ url, processes }: RunningSystem, signal: AbortSignal): Promise<void> {
  const workers = processes.map(({ metricsAddress }) => `http://${metricsAddress}/metrics`);
  while (!signal.aborted) {
    const read = [`${url}/metrics`, ...workers].map((target) => metricsOf(target, signal).catch(() => ''));
    await Promise.all(read);
    await sleep(SCRAPE_EVERY_MS, undefined, { signal }).catch(() => {});
  }
}

async function metricsOf(url: string, signal: AbortSignal): Promise<string> {
  return text(await sendRequest({ method: 'GET', url, headers: { accept: OPEN_METRICS }, signal }));
}

/**
 * One completion whose decode worker is killed when the third part of its answer has come.
 * @returns the spans of all processes.
 * @throws ServingError internal if the spans of the request do not come.
 */
export async function traceOfReplay(
  system: RunningSystem,
  collector: Collector,
  prompts: PromptMaker,
  options: Sending,
): Promise<ReceivedSpan[]> {
  const traceId = '4bf92f3577b34da6a3ce929d0e0e4736'; // the one of W3C's examples
  const signal = AbortSignal.timeout(options.timeoutMs);
  let chunks = 0;
  let killed = Promise.resolve();
  await streamCompletion(
    system.url,
    { ...bodyOf(prompts, 0, options), max_tokens: Math.max(64, options.outputTokens) },
    signal,
    {
      headers: { traceparent: `00-${traceId}-00f067aa0ba902b7-01` },
      onChunk: () => {
        if (++chunks === 3) killed = killBusyDecoder(system, signal);
      },
    },
  );
  await killed;
  const spans = () => collector.spans.filter((span) => span.traceId === traceId);
  const isWhole = () =>
    spans().some(({ name }) => name.startsWith('text_completion')) &&
    spans().filter(({ service, name }) => service !== 'llavacode-gateway' && name === 'steps').length > 0;
  while (!isWhole()) {
    if (signal.aborted) throw new ServingError('internal', 'the spans of the request have not come');
    await sleep(100);
  }
  return spans().sort((a, b) => a.startMs - b.startMs);
}

async function killBusyDecoder({ processes }: RunningSystem, signal: AbortSignal): Promise<void> {
  for (const { name, pid, metricsAddress } of processes) {
    if (!name.startsWith('decode') || pid === undefined) continue;
    const text = await metricsOf(`http://${metricsAddress}/metrics`, signal);
    if (/^vllm:num_requests_running\{[^}]*\} [1-9]/m.test(text)) process.kill(pid, 'SIGKILL');
  }
}
