// One sound at a time: starting a player pauses the others.
const players = [...document.querySelectorAll("audio")];
for (const player of players)
  player.addEventListener("play", () => players.forEach((other) => other === player || other.pause()));
