/** A client that sends its next requests before the answers to those before them have come (HTTP/1.1 pipelining). */
import { once } from 'node:events';
import { createParser } from 'eventsource-parser';
import { ServingError } from '../../services/lib/process/errors.ts';
import type { AttackScene } from './attack.ts';
import type { Metered } from './meter.ts';
import { dial, promptOf, rawCompletion } from './raw-client.ts';
import { ResponseReader } from './response-reader.ts';

/** Requests on the way at once. */
const DEPTH = 8;
const [PROMPT_TOKENS, OUTPUT_TOKENS] = [32, 64];

/**
 * Keeps one connection full of requests, until the attack is over or the connection is closed.
 * @throws ServingError worker_lost if the gateway closes the connection.
 */
export async function keepPipelining({ door, random, meter, until }: AttackScene): Promise<void> {
  const socket = await dial(door);
  if (!socket) throw new ServingError('worker_lost', 'the connection was refused');
  const onTheWay: Metered[] = [];
  const send = () => {
    onTheWay.push(meter.sent(1, PROMPT_TOKENS));
    const shape = { max_tokens: OUTPUT_TOKENS, temperature: 1, ignore_eos: true, return_token_ids: true, stream: true };
    socket.write(rawCompletion(door, { prompt: promptOf(random, PROMPT_TOKENS), ...shape }));
  };
  const parser = createParser({
    onEvent: ({ data }) => {
      if (data === '[DONE]') return;
      const { choices = [] } = JSON.parse(data) as { choices?: readonly { token_ids?: readonly number[] }[] };
      for (const { token_ids = [] } of choices) onTheWay[0]?.received(0, token_ids.length);
    },
  });
  const reader = new ResponseReader({
    onHead: (status) => {
      if (status !== 200) meter.refused(`HTTP ${status}`);
    },
    onBody: (bytes) => parser.feed(bytes.toString('latin1')), // only ASCII is looked at
    onEnd: () => {
      parser.reset();
      onTheWay.shift()?.ended();
      if (!until.aborted) send();
    },
  });
  const leave = () => void socket.destroy();
  try {
    until.addEventListener('abort', leave, { once: true });
    if (until.aborted) leave();
    socket.on('data', (bytes: Buffer) => reader.feed(bytes));
    for (let i = 0; i < DEPTH; i++) send();
    if (!socket.closed) await once(socket, 'close');
    if (!until.aborted) throw new ServingError('worker_lost', 'the gateway closed the connection');
  } finally {
    until.removeEventListener('abort', leave);
    socket.destroy();
    for (const metered of onTheWay) metered.ended();
  }
}
