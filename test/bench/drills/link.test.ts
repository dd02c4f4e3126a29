import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { text } from 'node:stream/consumers';
import { setImmediate } from 'node:timers/promises';
import { describe, expect, onTestFinished, test, vi } from 'vitest';
import { Link } from '../../../bench/drills/link.ts';

describe('a link', () => {
  async function echo(): Promise<Link> {
    const server = createServer((socket) => socket.pipe(socket)).listen(0, '127.0.0.1');
    await once(server, 'listening');
    const link = await Link.open();
    link.target = `127.0.0.1:${(server.address() as AddressInfo).port}`;
    onTestFinished(() => {
      link.close();
      server.close();
    });
    return link;
  }
  async function dial(link: Link): Promise<Socket> {
    const socket = connect(Number(link.address.split(':')[1]), '127.0.0.1');
    onTestFinished(() => void socket.destroy());
    await once(socket, 'connect');
    return socket;
  }
  const say = async (socket: Socket, text: string) => {
    socket.write(text);
    return String((await once(socket, 'data'))[0]);
  };

  test('connections of a link with several targets take turns, and without a target they are refused', async () => {
    const link = await Link.open();
    onTestFinished(() => link.close());
    await once(await dial(link), 'close');
    const serving = async (name: string) => {
      const server = createServer((socket) => socket.end(name)).listen(0, '127.0.0.1');
      await once(server, 'listening');
      onTestFinished(() => void server.close());
      return `127.0.0.1:${(server.address() as AddressInfo).port}`;
    };
    link.targets = [await serving('one'), await serving('two')];
    const answers = [await text(await dial(link)), await text(await dial(link)), await text(await dial(link))];
    expect(new Set(answers)).toEqual(new Set(['one', 'two']));
    expect(answers[2]).toBe(answers[0]);
  });

  test('a slow link carries everything in order', async () => {
    const link = await echo();
    link.delayMs = 5;
    const socket = await dial(link);
    for (const text of ['one', 'two']) expect(await say(socket, text)).toBe(text);
  });

  test('a link that is slow and fast in turns keeps the order', async () => {
    const link = await echo();
    const socket = await dial(link);
    let heard = '';
    socket.on('data', (part) => {
      heard += part;
    });
    const words = Array.from({ length: 100 }, (_, i) => `${i} `);
    for (const [i, word] of words.entries()) {
      link.delayMs = i % 2 === 0 ? 5 : 0;
      socket.write(word);
      for (let turn = 0; turn < 5; turn++) await setImmediate(); // otherwise several words travel as one part
    }
    while (heard.length < words.join('').length) await once(socket, 'data');
    expect(heard).toBe(words.join(''));
  });

  test('a slow link delivers what was sent before the end of a connection', async () => {
    const link = await Link.open();
    link.delayMs = 50;
    const server = createServer((socket) => socket.end('the last word')).listen(0, '127.0.0.1');
    await once(server, 'listening');
    link.target = `127.0.0.1:${(server.address() as AddressInfo).port}`;
    onTestFinished(() => {
      link.close();
      server.close();
    });
    expect(await text(await dial(link))).toBe('the last word');
  });

  test('a link that is down closes all connections, and takes new ones when it is up again', async () => {
    const link = await echo();
    const before = await dial(link);
    expect(await say(before, 'x')).toBe('x');
    link.state = 'down';
    await once(before, 'close');
    await once(await dial(link), 'close');
    link.state = 'up';
    expect(await say(await dial(link), 'y')).toBe('y');
  });

  test('a dead link carries nothing and closes no connection, and what it swallowed never arrives', async () => {
    const link = await echo();
    const socket = await dial(link);
    expect(await say(socket, 'x')).toBe('x');
    const heard: string[] = [];
    socket.on('data', (part) => heard.push(String(part)));
    link.state = 'dead';
    socket.write('lost');
    await vi.waitUntil(() => link.broken === 1, { timeout: 60_000 });
    link.state = 'up';
    await once(socket, 'close');
    expect(heard).toEqual([]);
    expect(await say(await dial(link), 'y')).toBe('y');
  });
});
