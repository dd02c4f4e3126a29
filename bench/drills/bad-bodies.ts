/** Drills of bodies that are too large or too slow: the first must be refused so that the client hears it. */
import { setTimeout as sleep } from 'node:timers/promises';
import { sendRequest } from '../../services/http-call.ts';
import { dial, headOf } from '../hostile/raw-client.ts';
import type { Door } from '../system/tenants.ts';
import type { Drill, Scene } from './scene.ts';

/** The gateway's default of --body-limit-bytes, and bodies beyond it. */
const LIMIT_BYTES = 4 << 20;
const TOO_LARGE = [1.25, 2].map((times) => times * LIMIT_BYTES);
const TRIES = 4;
const ANSWER_TIMEOUT_MS = 10_000;
const PAYLOAD_TOO_LARGE = 413;

/** The gateway's --receive-timeout-ms in these drills. */
export const RECEIVE_TIMEOUT_MS = 3_000;
/** Time after which a body that drips must have cost the client its connection. */
const CLOSED_WITHIN_MS = RECEIVE_TIMEOUT_MS + 5_000;

async function sendTooMuch({ fleet, mark }: Scene): Promise<string> {
  mark();
  const heard: Record<string, number> = {};
  const clients = { 'a client that reads meanwhile': readMeanwhile, 'a client that writes first': writeFirst };
  for (const [name, send] of Object.entries(clients)) {
    for (const bytes of TOO_LARGE) {
      for (let i = 0; i < TRIES; i++) {
        if ((await send(fleet, bytes)) === PAYLOAD_TOO_LARGE) heard[name] = (heard[name] ?? 0) + 1;
      }
    }
  }
  const all = TOO_LARGE.length * TRIES;
  const found = Object.keys(clients).map((name) => `${name} heard ${heard[name] ?? 0} of ${all} refusals`);
  if (Object.keys(clients).some((name) => heard[name] !== all)) throw new Error(found.join('; '));
  return found.join('; ');
}

/** Most clients read while they write, as Node's does. @returns the status; undefined if there was no answer. */
async function readMeanwhile({ url, apiKey }: Door, bytes: number): Promise<number | undefined> {
  const signal = AbortSignal.timeout(ANSWER_TIMEOUT_MS);
  const headers = { 'content-type': 'application/json', authorization: `Bearer ${apiKey}` };
  const call = { method: 'POST', url: `${url}/v1/completions`, headers, body: bodyOf(bytes), signal } as const;
  const response = await sendRequest(call).catch(() => undefined);
  response?.resume().on('error', () => {}); // it was heard by then
  return response?.statusCode;
}

/** Python's urllib and others write all of their body before they read. As {@link readMeanwhile}. */
async function writeFirst(door: Door, bytes: number): Promise<number | undefined> {
  const socket = await dial(door);
  if (!socket) return undefined;
  const timer = setTimeout(() => socket.destroy(), ANSWER_TIMEOUT_MS);
  try {
    socket.pause();
    const request = headOf(door, '/v1/completions', bytes) + bodyOf(bytes);
    const written = await new Promise<boolean>((resolve) => {
      socket.once('close', () => resolve(false));
      socket.write(request, (error) => resolve(!error));
    });
    if (!written) return undefined;
    for await (const part of socket) return Number(/^HTTP\/1\.1 (\d{3})/.exec(String(part))?.[1]);
    return undefined;
  } catch {
    return undefined;
  } finally {
    clearTimeout(timer);
    socket.destroy();
  }
}

function bodyOf(bytes: number): string {
  const [begin, end] = ['{"max_tokens":1,"prompt":"', '"}'];
  return begin + 'a'.repeat(bytes - begin.length - end.length) + end;
}

/** A client without a key may not hold a connection by sending slowly, and one with a key not for long either. */
async function drip({ fleet, mark }: Scene): Promise<string> {
  const { url, apiKey } = fleet;
  mark();
  const heads = {
    'a completion without a key': headOf({}, '/v1/completions', 100_000),
    'a completion with a key': headOf({ apiKey }, '/v1/completions', 100_000),
    'an upload without a key': headOf({}, '/v1/repos/dripping', 100_000, {}, 'PUT'),
    'a probe with a body': headOf({}, '/livez', 100_000, {}, 'GET'),
  };
  const kept = await Promise.all(
    Object.entries(heads).map(async ([name, head]) => ((await dripInto({ url }, head)) ? [] : [name])),
  );
  const left = kept.flat();
  if (left.length > 0) throw new Error(`${CLOSED_WITHIN_MS} ms of dripping did not end: ${left.join(', ')}`);
  return `${kept.length} connections were closed`;
}

/** @returns whether the gateway has closed the connection in time. */
async function dripInto(door: Door, head: string): Promise<boolean> {
  const socket = await dial(door);
  if (!socket) return true;
  socket.resume().write(head);
  const endMs = performance.now() + CLOSED_WITHIN_MS;
  while (performance.now() < endMs && !socket.closed) {
    if (socket.writable) socket.write(' ');
    await sleep(250);
  }
  const { closed } = socket;
  socket.destroy();
  return closed;
}

export const BODY_DRILLS: readonly Drill[] = [
  { name: 'bodies that are too large', disturb: sendTooMuch },
  { name: 'bodies that drip', disturb: drip },
];
