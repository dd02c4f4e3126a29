/**
 * The drill of a client that asks for more than sockets hold and does not read. The gateway must keep what the client
 * does not take as tokens: its request waits, and neither decode workers nor other clients do. If the gateway wrote
 * everything out regardless, its timeline would have the last token before anything was read. Memory does not show the
 * difference: the model that ships makes 1 MiB/s, and with 5 to 8 MiB unread the gateway grew by up to 19 MiB when it
 * waited, and by 13 to 22 MiB when it was made not to wait.
 */
import { readFileSync } from 'node:fs';
import type { IncomingMessage } from 'node:http';
import { text } from 'node:stream/consumers';
import { setTimeout as sleep } from 'node:timers/promises';
import { createParser } from 'eventsource-parser';
import { bearer, sendRequest } from '../../services/http-call.ts';
import type { Fleet } from './fleet.ts';
import type { Scene } from './scene.ts';
import { TIMEOUT_MS } from './streams.ts';

/** Number of choices: fewer than there are slots, because other requests need some as well. */
const CHOICES = 12;
/** Tokens of each choice; together they make 5 MiB of events. */
const TOKENS = 650;
/** The most that a socket may hold for the drill to work; it is the default of Linux. */
const MAX_SOCKET_BYTES = 4 << 20;

/** @returns why the drill cannot work here, if the kernel could hold all that the client does not read. */
export function socketsHoldAll(): string | undefined {
  if (process.platform !== 'linux') return undefined;
  const bytes = Number(readFileSync('/proc/sys/net/ipv4/tcp_wmem', 'utf8').trim().split(/\s+/)[2]);
  return bytes > MAX_SOCKET_BYTES ? `sockets hold ${wholeMebibytes(bytes)} (net.ipv4.tcp_wmem)` : undefined;
}

export async function readSlowly({ fleet, references, mark, burst }: Scene): Promise<string> {
  const gateway = fleet.of('gateway')[0]!;
  const rss = async () => (await fleet.vitals(gateway))?.rssBytes ?? 0;
  const before = await rss();
  mark();
  const { prompt, suffix } = references[0]!.body;
  const body = {
    prompt,
    suffix,
    n: CHOICES,
    max_tokens: TOKENS,
    temperature: 0,
    ignore_eos: true,
    stream: true,
    // As many bytes per token as a request can ask for.
    logprobs: 5,
    return_token_ids: true,
    stream_options: { include_usage: true, continuous_usage_stats: true },
  };
  const sentMs = performance.now();
  const response = await sendRequest({
    method: 'POST',
    url: `${fleet.url}/v1/completions`,
    headers: {
      'content-type': 'application/json',
      'x-request-id': 'x'.repeat(128),
      'x-llavacode-timeline': '1',
      ...bearer(fleet.apiKey),
    },
    body: JSON.stringify(body),
    signal: AbortSignal.timeout(TIMEOUT_MS),
  });
  if (response.statusCode !== 200) throw new Error(`the request was refused: ${await text(response)}`);
  const beganMs = performance.now();
  // The client reads nothing until all of it has been decoded.
  await untilDecoding(fleet, (running) => running >= CHOICES);
  await untilDecoding(fleet, (running) => running === 0);
  await burst();
  // The clock of the gateway's timeline began up to this long before `beganMs`.
  await sleep(beganMs - sentMs);
  const grown = Math.max(0, (await rss()) - before);
  const unreadMs = performance.now() - beganMs;
  const { bytes, lastTokenMs } = await readWhole(response);
  const found = `${wholeMebibytes(bytes)} unread cost the gateway ${wholeMebibytes(grown)}`;
  if (lastTokenMs < unreadMs) throw new Error(`${found}, and its request did not wait for it to be read`);
  return `${found}; its request waited, and all of it came when it was read`;
}

/** @param isSo condition on the number of sequences that all decode workers run together. */
async function untilDecoding(fleet: Fleet, isSo: (running: number) => boolean): Promise<void> {
  const deadlineMs = performance.now() + TIMEOUT_MS;
  while (performance.now() < deadlineMs) {
    const vitals = await Promise.all(fleet.of('decode').map((member) => fleet.vitals(member)));
    if (isSo(vitals.reduce((sum, of) => sum + (of?.running ?? 0), 0))) return;
    await sleep(50);
  }
  throw new Error(`decode workers did not begin or end their work within ${TIMEOUT_MS} ms`);
}

/** @throws if a token of a choice is missing, or differs from that of the other choices. */
async function readWhole(response: IncomingMessage): Promise<{ bytes: number; lastTokenMs: number }> {
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
  for await (const part of response) {
    bytes += (part as Buffer).length;
    parser.feed(decoder.decode(part as Buffer, { stream: true }));
  }
  const whole = choices.every((ids) => ids.length === TOKENS && ids.every((id, i) => id === choices[0]![i]));
  if (!done || !whole) throw new Error('the answer that was read at last is not complete');
  return { bytes, lastTokenMs };
}

const wholeMebibytes = (bytes: number) => `${(bytes / 2 ** 20).toFixed(0)} MiB`;
