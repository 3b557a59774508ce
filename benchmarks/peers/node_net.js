// Node's net module: what a user of it would write. Usage: node node_net.js PORT (0 picks one).
'use strict';
const net = require('node:net');

// Code points, not UTF-16 units.
function count(line) {
  let characters = 0;
  for (const _ of line) characters++;
  return characters;
}

const server = net.createServer({ noDelay: true, allowHalfOpen: true }, (socket) => {
  let rest = '';
  socket.setEncoding('utf8'); // keeps a code point that is cut between two chunks
  socket.on('data', (text) => {
    const lines = (rest + text).split('\n');
    rest = lines.pop();
    let replies = '';
    for (const line of lines) {
      replies += count(line.endsWith('\r') ? line.slice(0, -1) : line) + '\n';
    }
    if (replies && !socket.write(replies)) socket.pause();
  });
  socket.on('drain', () => socket.resume());
  socket.on('end', () => socket.end(rest && `${count(rest)}\n`));
  socket.on('error', () => socket.destroy());
});

server.listen({ host: '127.0.0.1', port: Number(process.argv[2]), backlog: 4096 }, () => {
  console.log(`listening on 127.0.0.1:${server.address().port}`);
});
