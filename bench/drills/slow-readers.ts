/** Clients that ask for much and read nothing: what they cost the gateway in memory. */
import { once } from 'node:events';
import { connect, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Scene } from './scene.ts';

const CLIENTS = 24;
/** What each may cost: the buffers of its socket and a few events. */
const BYTES_PER_CLIENT = 2 << 20;

export async function readSlowly({ fleet, seconds, references, mark }: Scene): Promise<string> {
  const gateway = fleet.of('gateway')[0]!;
  const before = (await fleet.vitals(gateway))?.rssBytes ?? 0;
  mark();
  const { prompt, suffix } = references[0]!.body;
  // As many bytes per token as can be asked for.
  const wanted = {
    prompt,
    suffix,
    max_tokens: 600,
    ignore_eos: true,
    logprobs: 5,
    return_token_ids: true,
    stream: true,
  };
  const sockets = await Promise.all(Array.from({ length: CLIENTS }, () => ask(gateway.process.address, wanted)));
  let peak = before;
  for (const endMs = performance.now() + 1000 * seconds; performance.now() < endMs; ) {
    await sleep(250);
    peak = Math.max(peak, (await fleet.vitals(gateway))?.rssBytes ?? 0);
  }
  for (const socket of sockets) socket.destroy();
  const grown = peak - before;
  const found = `${CLIENTS} of them cost the gateway ${(grown / 2 ** 20).toFixed(0)} MiB`;
  if (grown > CLIENTS * BYTES_PER_CLIENT) throw new Error(`${found}, more than ${BYTES_PER_CLIENT >> 20} MiB each`);
  return found;
}

async function ask(address: string, body: object): Promise<Socket> {
  const colon = address.lastIndexOf(':');
  const socket = connect(Number(address.slice(colon + 1)), address.slice(0, colon));
  socket.on('error', () => {});
  await once(socket, 'connect');
  socket.pause();
  const text = JSON.stringify(body);
  const head = `POST /v1/completions HTTP/1.1\r\nhost: drill\r\ncontent-type: application/json\r\n`;
  socket.write(`${head}content-length: ${Buffer.byteLength(text)}\r\n\r\n${text}`);
  return socket;
}
