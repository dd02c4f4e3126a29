/**
 * A client that asks for more than sockets hold and does not read. What it does not take must stay tokens: its request
 * waits for it in the gateway, and keeps neither decoders nor anybody else waiting. Were it written out regardless, the
 * gateway's own timeline would have its last token before anything was read. Memory cannot tell the two apart: the model that ships makes 1 MiB a second,
 * and with 5 to 8 MiB unread the gateway grew by up to 19 MiB where it waited, by 13 to 22 where it was made not to.
 */
import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { createParser } from 'eventsource-parser';
import type { Fleet } from './fleet.ts';
import type { Scene } from './scene.ts';
import { TIMEOUT_MS } from './streams.ts';

/** Fewer than there are slots: others must have some to decode in. */
const CHOICES = 12;
/** Together 5 MiB of events. */
const TOKENS = 650;
/** What a socket may hold for the drill to see anything, and does on Linux where nobody changed it. */
const MAX_SOCKET_BYTES = 4 << 20;

/** @returns why what is not read would lie in the kernel, and nowhere else. */
export function socketsHoldAll(): string | undefined {
  if (process.platform !== 'linux') return undefined;
  const bytes = Number(readFileSync('/proc/sys/net/ipv4/tcp_wmem', 'utf8').trim().split(/\s+/)[2]);
  return bytes > MAX_SOCKET_BYTES ? `sockets hold ${mebibytes(bytes)} (net.ipv4.tcp_wmem)` : undefined;
}

export async function readSlowly({ fleet, references, mark, burst }: Scene): Promise<string> {
  const gateway = fleet.of('gateway')[0]!;
  const rss = async () => (await fleet.vitals(gateway))?.rssBytes ?? 0;
  const before = await rss();
  mark();
  const { prompt, suffix } = references[0]!.body;
  const body = {
    ...{ prompt, suffix, n: CHOICES, max_tokens: TOKENS, temperature: 0, ignore_eos: true, stream: true },
    // As many bytes per token as can be asked for.
    ...{ logprobs: 5, return_token_ids: true, stream_options: { include_usage: true, continuous_usage_stats: true } },
  };
  const sentMs = performance.now();
  const response = await fetch(`${fleet.url}/v1/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', 'x-request-id': 'x'.repeat(128), 'x-llavacode-timeline': '1' },
    body: JSON.stringify(body),
    signal: AbortSignal.timeout(TIMEOUT_MS),
  });
  if (!response.ok) throw new Error(`it was refused: ${await response.text()}`);
  const beganMs = performance.now();
  // Nothing is read until all of it is decoded.
  await untilDecoding(fleet, (running) => running >= CHOICES);
  await untilDecoding(fleet, (running) => running === 0);
  await burst();
  // The gateway's clock began up to so much before `beganMs`.
  await sleep(beganMs - sentMs);
  const grown = Math.max(0, (await rss()) - before);
  const unreadMs = performance.now() - beganMs;
  const { bytes, lastTokenMs } = await readWhole(response);
  const found = `${mebibytes(bytes)} unread cost the gateway ${mebibytes(grown)}`;
  if (lastTokenMs < unreadMs) throw new Error(`${found}, and its request did not wait for it to be read`);
  return `${found}; its request waited, all came when it was read`;
}

/** @param isSo of the sequences that all decoders have together. */
async function untilDecoding(fleet: Fleet, isSo: (running: number) => boolean): Promise<void> {
  const deadlineMs = performance.now() + TIMEOUT_MS;
  while (performance.now() < deadlineMs) {
    const vitals = await Promise.all(fleet.of('decode').map((member) => fleet.vitals(member)));
    if (isSo(vitals.reduce((sum, of) => sum + (of?.running ?? 0), 0))) return;
    await sleep(50);
  }
  throw new Error('decoders did not begin, or come to an end');
}

/** @throws where a token of a choice is missing, or is another than that of the other choices. */
async function readWhole({ body }: Response): Promise<{ bytes: number; lastTokenMs: number }> {
  const choices = Array.from({ length: CHOICES }, (): number[] => []);
  let [bytes, lastTokenMs, done] = [0, 0, false];
  const parser = createParser({
    onEvent: ({ data }) => {
      if (data === '[DONE]') {
        done = true;
        return;
      }
      const { choices: news = [], timeline } = JSON.parse(data);
      for (const { index, token_ids } of news) choices[index]!.push(...token_ids);
      lastTokenMs = timeline?.last_token ?? lastTokenMs;
    },
  });
  const decoder = new TextDecoder();
  for await (const part of body!) {
    bytes += part.length;
    parser.feed(decoder.decode(part, { stream: true }));
  }
  const whole = choices.every((ids) => ids.length === TOKENS && ids.every((id, i) => id === choices[0]![i]));
  if (!done || !whole) throw new Error('what was read at last is not whole');
  return { bytes, lastTokenMs };
}

const mebibytes = (bytes: number) => `${(bytes / 2 ** 20).toFixed(0)} MiB`;
