import { once } from 'node:events';
import { type AddressInfo, createServer, type Socket } from 'node:net';
import { describe, expect, onTestFinished, test } from 'vitest';
import { BODY_DRILLS } from '../../../bench/drills/bad-bodies.ts';
import { scene } from '../../support/drill-scene.ts';

const REFUSAL = 'HTTP/1.1 413 Payload Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n';

async function disturb(name: string, serve: (socket: Socket) => void): Promise<string | undefined> {
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.on('error', () => {});
    serve(socket);
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  onTestFinished(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  const { port } = server.address() as AddressInfo;
  return BODY_DRILLS.find((drill) => drill.name === name)!.disturb(scene({ url: `http://127.0.0.1:${port}` }).scene);
}

describe('bodies that are too large', () => {
  test('a gateway that reads on until it has been heard is as promised', async () => {
    const found = disturb('bodies that are too large', (socket) => {
      let [bytes, length] = [0, 0];
      socket.on('data', (part) => {
        const head = length === 0 ? part.toString('latin1').split('\r\n\r\n')[0]! : '';
        if (head !== '') length = head.length + 4 + Number(/content-length: (\d+)/i.exec(head)?.[1]);
        bytes += part.length;
        if (bytes === length) socket.end(REFUSAL);
      });
    });
    expect(await found).toBe(
      'a client that reads meanwhile heard 8 of 8 refusals; a client that writes first heard 8 of 8 refusals',
    );
  });

  test('a gateway that closes while the body comes is not heard', async () => {
    const found = disturb('bodies that are too large', (socket) => {
      socket.once('data', () => socket.write(REFUSAL, () => socket.resetAndDestroy()));
    });
    await expect(found).rejects.toThrow('a client that writes first heard 0 of 8 refusals');
  });
});

describe('bodies that drip', () => {
  test('a gateway that closes the connections is as promised', async () => {
    expect(await disturb('bodies that drip', (socket) => void socket.once('data', () => socket.destroy()))).toBe(
      '4 connections were closed',
    );
  });

  test('a gateway that waits for uploads without a key is not', { timeout: 60_000 }, async () => {
    const found = disturb('bodies that drip', (socket) => {
      socket.once('data', (part) => {
        if (part.toString().startsWith('PUT')) socket.resume();
        else socket.destroy();
      });
    });
    await expect(found).rejects.toThrow('did not end: an upload without a key');
  });
});
