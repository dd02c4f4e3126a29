/** Connections on which bytes are written as they are: what a client does that keeps no rule of politeness. */
import { once } from 'node:events';
import { connect, type Socket } from 'node:net';
import { bearer } from '../../services/http-call.ts';
import type { RandomStream } from '../measure/arrivals.ts';
import type { Door } from '../system/tenants.ts';

/** Token ids that every vocabulary has, and that stand for ordinary text. */
const IDS = { from: 300, count: 1_500 };

/** A prompt that shares its beginning with no other, so that its KV is computed. */
export const promptOf = (random: RandomStream, tokens: number): number[] =>
  Array.from({ length: tokens }, () => IDS.from + random.below(IDS.count));

/** A connection whose errors are of no interest; undefined if it is refused. */
export async function dial({ url }: Pick<Door, 'url'>): Promise<Socket | undefined> {
  const { hostname, port } = new URL(url);
  const socket = connect({ host: hostname, port: Number(port) });
  socket.setNoDelay(true);
  const refused = new Promise<'refused'>((resolve) => socket.on('error', () => resolve('refused')));
  const outcome = await Promise.race([once(socket, 'connect'), refused]);
  return outcome === 'refused' ? undefined : socket;
}

/** The head of a request, with the key of its tenant. */
export function headOf(
  { apiKey }: Pick<Door, 'apiKey'>,
  path: string,
  contentLength: number,
  more: Readonly<Record<string, string>> = {},
  method = 'POST',
): string {
  const headers = {
    host: '127.0.0.1',
    'content-type': 'application/json',
    'content-length': String(contentLength),
    ...bearer(apiKey),
    ...more,
  };
  const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`);
  return `${method} ${path} HTTP/1.1\r\n${lines.join('')}\r\n`;
}

/** A whole request for a completion. */
export function rawCompletion(
  door: Pick<Door, 'apiKey'>,
  body: object,
  more?: Readonly<Record<string, string>>,
): string {
  const text = JSON.stringify(body);
  return headOf(door, '/v1/completions', Buffer.byteLength(text), more) + text;
}
